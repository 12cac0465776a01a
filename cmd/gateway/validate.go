package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"culvert/capture"
	"culvert/capture/names"
	"culvert/pki"
	"culvert/pki/acme"
	"culvert/pki/jwt"
	"culvert/policy"
	"culvert/policy/extauthz"
	"culvert/tunnel"
)

// leastSensibleMemory is below what a gateway with a few flows needs.
const leastSensibleMemory = 16 << 20

// destLocal stands for this host's own destinations in routes.
const destLocal = "local"

// validator finds the place in the file, or the flag, of what the packages say is wrong with their parts,
// and adds what only the whole shows. It reads no file and opens nothing.
type validator struct {
	cfg    *Config
	places *places
	faults *faults
}

// validate notes everything that is wrong with cfg, as far as it could be read.
func validate(cfg *Config, p *places, f *faults) {
	if f.broken {
		return
	}
	v := &validator{cfg: cfg, places: p, faults: f}
	v.process()
	v.join("identity", cfg.Identity.Validate())
	v.join("", cfg.Trust.Validate())
	v.join("tokens", cfg.Tokens.Validate())
	v.admin()
	if len(cfg.Listeners) == 0 && p.file != "" {
		v.note("listeners", "there are no listeners, so nothing would ever come in; add one, such as {name: apps, kind: socks5, address: 127.0.0.1:1080}")
	}
	v.join("dns", cfg.DNS.Validate())
	v.join("resolver", cfg.Resolver.Validate())
	v.authorizers()
	v.acmeNames()
	v.join("", cfg.Config.Validate())
	v.resolvers()
	v.xTun()
	if p.file != "" {
		v.leads()
	}
}

func (v *validator) note(path, format string, args ...any) {
	v.faults.list = append(v.faults.list, v.places.at(path, fmt.Sprintf(format, args...)))
}

// join notes every error in err, which a package's Validate has joined, at the field it speaks of.
func (v *validator) join(path string, err error) {
	var problems tunnel.Problems
	switch many, ok := err.(interface{ Unwrap() []error }); {
	case err == nil:
		return
	case ok:
		for _, one := range many.Unwrap() {
			v.join(path, one)
		}
		return
	case errors.As(err, &problems):
		for _, one := range problems {
			v.note(one.Path, "%s", v.inTheirWords(one.What))
		}
		return
	}
	var identity *pki.ConfigError
	var token *jwt.ConfigError
	var field *capture.FieldError
	var entry *policy.EntryError
	var dns *names.FieldError
	var authorizer *extauthz.FieldError
	var public *acme.ConfigError
	what := fmt.Sprint(err)
	switch {
	case errors.As(err, &identity):
		if path += "." + identity.Field; strings.HasPrefix(identity.Field, "trust.") {
			path = identity.Field
		}
		if identity.File != "" { // the place says which field it is
			what = strings.TrimPrefix(what, identity.Field+" ")
		}
	case errors.As(err, &token):
		path, what = path+"."+token.Field, token.Field+": "+token.What
		if token.Err != nil {
			what += ": " + token.Err.Error()
		}
	case errors.As(err, &public):
		path += "." + public.Field
	case errors.As(err, &field):
		path += "." + field.Field
	case errors.As(err, &dns):
		path, what = path+"."+dns.Field, dns.What
	case errors.As(err, &authorizer):
		path, what = path+"."+authorizer.Field, authorizer.What
	case errors.As(err, &entry):
		if path += "." + entry.Field; entry.Index >= 0 {
			path += fmt.Sprintf("[%d]", entry.Index)
		}
	}
	v.note(path, "%s", what)
}

// routePlace is how a problem names another route.
var routePlace = regexp.MustCompile(`routes\[\d+\]`)

// inTheirWords puts lines to the routes that a problem names, and flags in the place of fields when the
// user wrote flags.
func (v *validator) inTheirWords(what string) string {
	if v.places.file == "" {
		return strings.NewReplacer("(socks5: {usersFile: FILE})", "(--proxy-users FILE)", "(http: {usersFile: FILE})", "(--proxy-users FILE)", "write open: true", "give --open-proxy",
			"add it to hops, or write host:port", "it should be host:port").Replace(what)
	}
	return routePlace.ReplaceAllStringFunc(what, func(route string) string {
		if line := v.places.at(route, "").line; line > 0 {
			return route + " (line " + strconv.Itoa(line) + ")"
		}
		return route
	})
}

// process checks what concerns the process as a whole.
func (v *validator) process() {
	if v.cfg.Memory != 0 && v.cfg.Memory < leastSensibleMemory {
		v.note("memory", "memory: %s is too little to run with; it should be at least %s, or left out for half of what there is", v.cfg.Memory, Size(leastSensibleMemory))
	}
	if _, err := parseLevel(v.cfg.Log.Level); err != nil {
		v.note("log.level", "%v", err)
	}
	if err := checkLogFormat(v.cfg.Log.Format); err != nil {
		v.note("log.format", "%v", err)
	}
}

func (v *validator) admin() {
	a := v.cfg.Admin
	if a.Address == "" {
		return
	}
	if err := checkListenAddress(a.Address); err != nil {
		v.note("admin.address", "%v", err)
		return
	}
	if !isLoopback(a.Address) && !a.Open {
		meant := "write open: true beside it"
		if v.places.file == "" {
			meant = "give --open-admin"
		}
		v.note("admin.address", "the admin address %s is reachable from other hosts, and it asks for no password; use 127.0.0.1, or %s if that is meant", a.Address, meant)
	}
	for i, l := range v.cfg.Listeners {
		if l.Address == a.Address && !strings.HasSuffix(a.Address, ":0") {
			v.note(fmt.Sprintf("listeners[%d].address", i), "%s is already taken by the admin address; each listener has its own port", a.Address)
		}
	}
}

// authorizers notes the faults of each, and names that two of them have.
func (v *validator) authorizers() {
	first := make(map[string]int)
	for i := range v.cfg.Authorizers {
		a := &v.cfg.Authorizers[i]
		path := fmt.Sprintf("policy.authorizers[%d]", i)
		v.join(path, a.Validate())
		if j, twice := first[a.Name]; twice && a.Name != "" {
			v.note(path+".name", "authorizer %q is there twice (first in line %d); each has a name of its own", a.Name, v.places.at(fmt.Sprintf("policy.authorizers[%d].name", j), "").line)
			continue
		}
		first[a.Name] = i
	}
}

// resolvers notes more than one dns listener: the questions of all apps come to one.
func (v *validator) resolvers() {
	first := ""
	for i, l := range v.cfg.Listeners {
		switch {
		case l.Kind != tunnel.KindDNS:
		case first == "":
			first = l.Name
		default:
			v.note(fmt.Sprintf("listeners[%d].kind", i), "listener %q is of kind dns already; one answers all questions, on :PORT for every address", first)
		}
	}
}

// xTun notes listeners that let requests in by their tokens where no token is believed, and issuers that nobody knows.
func (v *validator) xTun() {
	of := v.cfg.issuers()
	for i := range v.cfg.Listeners {
		l := &v.cfg.Listeners[i]
		if l.Kind != tunnel.KindXTun && l.XTun == nil {
			continue
		}
		if of.IsZero() {
			v.note(fmt.Sprintf("listeners[%d]", i), "listener %q takes requests by their tokens, and none is believed; name issuers in tokens", l.Name)
			continue
		}
		if l.XTun == nil {
			continue
		}
		for j, issuer := range l.XTun.Issuers {
			if !strings.HasPrefix(issuer, "key:") && !slices.Contains(of.Names(), issuer) {
				v.note(fmt.Sprintf("listeners[%d].xTun.issuers[%d]", i, j), "%q is no issuer in tokens; name it there", issuer)
			}
		}
	}
}

// leads notes every listener from which no route leads anywhere.
func (v *validator) leads() {
	for i, l := range v.cfg.Listeners {
		from := func(r tunnel.RouteConfig) bool { return len(r.Listeners) == 0 || slices.Contains(r.Listeners, l.Name) }
		if l.Name == "" || len(l.Agents) > 0 || len(l.Offer) > 0 || slices.ContainsFunc(v.cfg.Routes, from) {
			continue // where agents register flows need not come in, and what is offered has a route
		}
		example := "{listeners: [" + l.Name + "], via: [HOP]}"
		switch l.Kind {
		case tunnel.KindAgent:
			example = "offer: {80: \"127.0.0.1:8080\"} to the listener"
		case tunnel.KindHBONE, tunnel.KindXTun:
			example = "{listeners: [" + l.Name + "], destinations: [local]}"
		}
		v.note(fmt.Sprintf("listeners[%d]", i), "no route leads anywhere from listener %q, so every flow would be refused; add one, such as %s", l.Name, example)
	}
}
