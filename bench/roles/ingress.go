package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"

	"culvert/bench/proc"
)

// The proxies that requests go through, as values and figures call them.
const (
	ourIngress = "Culvert"
	bareProxy  = "bare ReverseProxy"
	haproxy    = "HAProxy"
	askedHost  = "shop.example"
	h1, h2     = "HTTP/1.1", "HTTP/2"
)

// manner is how requests come.
type manner struct {
	name string
	ask  ask // without address
}

var manners = []manner{
	{h1, ask{host: askedHost}},
	{h2, ask{host: askedHost, h2: true}},
	{"HTTP/2 over TLS", ask{host: askedHost, h2: true, tls: true}},
}

func missingHAProxy(*site) string {
	for program, install := range map[string]string{"h2load": "nghttp2-client", "haproxy": "haproxy"} {
		if _, err := exec.LookPath(program); err != nil {
			return "no " + program + ": install " + install
		}
	}
	return ""
}

// front is a proxy before the backend, and where it listens.
type front struct {
	proc.Group
	name               string
	plain, h2c, secure string
}

// addr is where requests of a manner go.
func (f *front) addr(m *manner) string {
	switch {
	case m.ask.tls:
		return f.secure
	case m.ask.h2:
		return f.h2c
	}
	return f.plain
}

// takeIngress measures how many requests a second go through each proxy, one after another in each manner, and then how
// long they take at half of what the slower one of Culvert and HAProxy has reached. Where one fails, the others go on.
func takeIngress(ctx context.Context, s *site, size *size) (values, error) {
	b, err := newBackend()
	if err != nil {
		return nil, err
	}
	defer b.close()
	fronts, err := s.fronts(b)
	defer func() {
		for i := range fronts {
			fronts[i].Stop()
		}
	}()
	if err != nil {
		return nil, err
	}
	v := make(values)
	var faults []error
	for i := range manners {
		m := &manners[i]
		for j := range fronts {
			got, err := fronts[j].answer(ctx, s, m, 0, size)
			if faults = append(faults, err); err == nil {
				v[requests(fronts[j].name, m.name)] = got.perSecond
			}
		}
		rate := min(v[requests(ourIngress, m.name)], v[requests(haproxy, m.name)]) / 2
		for j := range fronts {
			if rate == 0 || m.ask.tls {
				break // one of both does not answer; or there is no goal
			}
			got, err := fronts[j].answer(ctx, s, m, rate, size)
			if faults = append(faults, err); err == nil {
				v[slowest(fronts[j].name, m.name)] = got.p99.Seconds() * 1e3
			}
		}
	}
	return v, errors.Join(faults...)
}

// answer has the front answer requests of a manner, rate a second, or as many as go.
func (f *front) answer(ctx context.Context, s *site, m *manner, rate float64, size *size) (*answered, error) {
	one := m.ask
	one.addr, one.rate = f.addr(m), rate
	err := until(ctx, &f.Group, func() error { return accepts(one.addr) })
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", f.name, m.name, err)
	}
	got, err := one.run(ctx, s, size.warm, size.requests)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", f.name, m.name, err)
	}
	return got, nil
}

// requests and slowest are the names of values.
func requests(front, manner string) string { return manner + ": requests/s, " + front }
func slowest(front, manner string) string  { return manner + ": p99 at half the peak, ms, " + front }

// fronts starts the proxies.
func (s *site) fronts(b *backend) ([]front, error) {
	at, err := addrs(7)
	if err != nil {
		return nil, err
	}
	cert, key := s.path("edge.pem"), s.path("edge.key")
	list := []front{
		{name: ourIngress, plain: at[0], h2c: at[0], secure: at[1]},
		{name: bareProxy, plain: at[2], h2c: at[2], secure: at[3]},
		{name: haproxy, plain: at[4], h2c: at[5], secure: at[6]},
	}
	ours, bare, other := &list[0], &list[1], &list[2]
	return list, errors.Join(
		s.file(&ours.Group, "exit", ingressConfig(ours.plain, ours.secure, b.addr(), 1)),
		bare.Add(s.dir, bareProxy, s.self, "proxy", bare.plain, bare.secure, b.addr(), cert, key),
		s.haproxy(other, b.addr(), cert, key),
	)
}

// ingressConfig is a gateway with ingress listeners, and n routes that lead to one backend: the last one is that of the
// host that is asked for, and of the others every second one is for another path of it.
func ingressConfig(plain, secure, to string, n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "listeners:\n- {name: edge, kind: ingress, address: %q}\n", plain)
	if secure != "" {
		fmt.Fprintf(&b, "- {name: secure, kind: ingress, address: %q, ingress: {certificates: [{cert: edge.pem, key: edge.key}]}}\n", secure)
	}
	b.WriteString("policy: {egress: [127.0.0.1]}\nroutes:\n")
	for i := range n - 1 {
		host, prefix := fmt.Sprintf("host%d.example", i), "/"
		if i%2 == 1 {
			host, prefix = askedHost, fmt.Sprintf("/path%d/", i)
		}
		fmt.Fprintf(&b, "- {hosts: [%s], http: {prefix: %s}, to: %q, from: any}\n", host, prefix, to)
	}
	fmt.Fprintf(&b, "- {hosts: [%s], http: {prefix: /}, to: %q, from: any}\n", askedHost, to)
	return b.String()
}

// haproxy starts HAProxy with as many threads as there are processors, its default, and without records.
func (s *site) haproxy(f *front, to, cert, key string) error {
	both, err := os.ReadFile(cert)
	if err != nil {
		return err
	}
	secret, err := os.ReadFile(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.path("haproxy.pem"), append(both, secret...), 0o600); err != nil {
		return err
	}
	text := strings.NewReplacer("$PLAIN", f.plain, "$H2C", f.h2c, "$SECURE", f.secure, "$TO", to, "$DIR", s.dir).Replace(haproxyConfig)
	if err := os.WriteFile(s.path("haproxy.cfg"), []byte(text), 0o600); err != nil {
		return err
	}
	return f.Add(s.dir, haproxy, "haproxy", "-db", "-f", s.path("haproxy.cfg"))
}

const haproxyConfig = `
global
  maxconn 2000
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 5s
  option forwardfor
  http-reuse always
frontend edge
  bind $PLAIN
  bind $H2C proto h2
  bind $SECURE ssl crt $DIR/haproxy.pem alpn h2,http/1.1
  default_backend app
backend app
  server app $TO
`

// accepts tries to connect.
func accepts(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}
