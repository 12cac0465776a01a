package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert/pki/spiffe"
	"culvert/policy"
	"culvert/tunnel"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check, test, explain and replay policies",
		Long: `Check, test, explain and replay policies before they are live. A file has rules of this gateway's
own, or AuthorizationPolicies, PeerAuthentications and RequestAuthentications of Istio as
` + "`kubectl get -o yaml`" + ` prints them, or both.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(policyCheckCommand(), policyTestCommand(), policyExplainCommand(), policyReplayCommand())
	return cmd
}

// policyFlags are what all commands about policies ask for.
type policyFlags struct {
	self        string
	allow       []string
	authorizers []string
	aliases     []string
}

// defaultSelf is who the gateway is where nobody says: its namespace counts for policies that name none.
const defaultSelf = "spiffe://cluster.local/ns/default/sa/gateway"

func (f *policyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.self, "self", defaultSelf, "identity of the gateway that decides, a `SPIFFE-ID`")
	cmd.Flags().StringArrayVar(&f.allow, "allow", nil, "let `PRINCIPAL` in besides, as of `gateway run` (repeatable)")
	cmd.Flags().StringArrayVar(&f.authorizers, "authorizer", nil, "`NAME` of an authorizer that the gateway has (repeatable)")
	cmd.Flags().StringArrayVar(&f.aliases, "trust-domain-alias", nil, "other `NAME` of the gateway's trust domain (repeatable)")
}

// load reads and compiles files, and runs the tests in them.
func (f *policyFlags) load(files []string) (*policies, *policy.Policy, spiffe.ID, error) {
	self, err := spiffe.Parse(f.self)
	if err != nil {
		return nil, nil, self, fmt.Errorf("--self: %w", err)
	}
	p := readPolicies(files, new(faults))
	rules := p.compile(policy.Config{
		Allow: f.allow, Namespace: self.Namespace(), TrustDomain: self.TrustDomain(), TrustDomainAliases: f.aliases, Authorizers: f.authorizers,
	})
	if err := p.faults.err(); err != nil {
		return nil, nil, self, err
	}
	return p, rules, self, nil
}

func policyCheckCommand() *cobra.Command {
	f := new(policyFlags)
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Report everything that is wrong with policies, and run the tests beside them",
		Args:  someArgs("FILE", "policy.yaml"),
		RunE: func(cmd *cobra.Command, files []string) error {
			p, rules, self, err := f.load(files)
			if err != nil {
				return err
			}
			if err := p.test(io.Discard, rules, self); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %s, all right\n", strings.Join(files, ", "), count(p.count, "policy", "policies"), count(len(p.tests), "test", "tests"))
			return failed(err)
		},
	}
	f.add(cmd)
	return cmd
}

func policyTestCommand() *cobra.Command {
	f := new(policyFlags)
	cmd := &cobra.Command{
		Use:   "test FILE...",
		Short: "Run the tests in policy files, a line each",
		Args:  someArgs("FILE", "policy.yaml"),
		RunE: func(cmd *cobra.Command, files []string) error {
			p, rules, self, err := f.load(files)
			if err != nil {
				return err
			}
			if len(p.tests) == 0 {
				return fmt.Errorf("there is no test in %s; write `tests:` beside `rules:`, such as - {peer: %s, dst: \"10.0.0.9:8080\", want: allow}", strings.Join(files, ", "), defaultSelf)
			}
			return p.test(cmd.OutOrStdout(), rules, self)
		},
	}
	f.add(cmd)
	return cmd
}

// test runs all tests and returns what is wrong with them.
func (p *policies) test(w io.Writer, rules *policy.Policy, self spiffe.ID) error {
	wrong := new(faults)
	for i := range p.tests {
		t := &p.tests[i]
		note := func(format string, args ...any) {
			wrong.list = append(wrong.list, fault{file: t.File, line: t.Line, what: fmt.Sprintf(format, args...)})
		}
		r, err := t.request(self)
		switch {
		case err != nil:
			note("%v", err)
			continue
		case t.Want != "allow" && t.Want != "deny":
			note("want: %q is nothing to want; it should be allow or deny", t.Want)
			continue
		}
		d := rules.Decide(r)
		if d.Allow != (t.Want == "allow") || t.Rule != "" && t.Rule != d.Rule {
			note("wants %s, and gets: %s", strings.TrimSpace(t.Want+" "+t.Rule), explanation(&d))
			continue
		}
		if _, err := fmt.Fprintf(w, "ok    %s: %s\n", t.Place, explanation(&d)); err != nil {
			return failed(err)
		}
	}
	return wrong.err()
}

func policyExplainCommand() *cobra.Command {
	f := new(policyFlags)
	t := new(PolicyTest)
	var files []string
	cmd := &cobra.Command{
		Use:   "explain --policy FILE --peer SPIFFE-ID --dst ADDR:PORT",
		Short: "Say what a policy makes of a flow, and by which rule",
		Long: `Say on one line what policies make of a flow: allow or deny, the rule that decides, and where
it is written. The exit code is 0 either way. Of a name rules about addresses are left out:
what it resolves to is asked about when it is known.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if t.Dst == "" {
				return fmt.Errorf("--dst is missing; it should be the destination, such as --dst 10.0.0.9:8080")
			}
			_, rules, self, err := f.load(files)
			if err != nil {
				return err
			}
			r, err := t.request(self)
			if err != nil {
				return fmt.Errorf("--%w", err)
			}
			if r.Time.IsZero() {
				r.Time = time.Now()
			}
			d := rules.Decide(r)
			_, err = fmt.Fprintln(cmd.OutOrStdout(), explanation(&d))
			return failed(err)
		},
	}
	f.add(cmd)
	fs := cmd.Flags()
	fs.StringArrayVar(&files, "policy", nil, "policy `FILE` (repeatable)")
	fs.StringVar(&t.Peer, "peer", "", "who asks, a `SPIFFE-ID` (default: nobody that is known)")
	fs.StringVar(&t.Dst, "dst", "", "what for: `ADDR:PORT` or NAME:PORT")
	fs.StringVar(&t.Source, "source", "", "`ADDR` that the connection comes from")
	fs.StringVar(&t.Workload, "workload", "", "`NAME` of the workload that the destination is")
	fs.StringVar(&t.Namespace, "namespace", "", "`NAMESPACE` of that workload (default: that of --self)")
	fs.StringToStringVar(&t.Labels, "labels", nil, "its labels, `KEY=VALUE[,...]`")
	fs.StringVar(&t.Listener, "listener", "", "`NAME` of the listener that has accepted it")
	fs.StringVar(&t.Remote, "remote", "", "`ADDR` of the client, as a proxy that is trusted tells (default: that of --source)")
	fs.StringVar(&t.TokenClaims, "token-claims", "", "what a valid token says, `JSON` such as '{\"iss\": \"https://issuer.example\", \"sub\": \"ann\"}' (default: no token)")
	fs.StringVar(&t.BadToken, "bad-token", "", "`WHY` a token that is shown is not valid (default: none is shown)")
	fs.StringVar(&t.Time, "time", "", "`TIME` of the request, such as 2026-03-02T09:30:00Z (default: now)")
	fs.StringVar(&t.SNI, "sni", "", "server `NAME` that TLS was asked for")
	fs.StringVar(&t.Method, "method", "", "`METHOD` of HTTP, where the hop has it in the clear")
	fs.StringVar(&t.Path, "path", "", "`PATH` of HTTP, as above")
	fs.StringToStringVar(&t.Headers, "headers", nil, "fields of HTTP, as above, `NAME=VALUE[,...]`")
	return cmd
}

// explanation is a decision on one line.
func explanation(d *policy.Decision) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s by %s", verdictOf(d.Allow), d.Rule)
	if place := d.Place.String(); place != "" {
		fmt.Fprintf(&b, " (%s)", place)
	}
	fmt.Fprintf(&b, ": %s", d.Reason)
	if d.Obligations != nil {
		fmt.Fprintf(&b, "; %s", obligations(d.Obligations))
	}
	if d.Report != nil {
		fmt.Fprintf(&b, "; with the rules in report it would be: %s", explanation(d.Report))
	}
	return b.String()
}

// obligations says what comes with a decision.
func obligations(o *policy.Obligations) string {
	var list []string
	if len(o.Ask) > 0 {
		list = append(list, "asks "+strings.Join(o.Ask, " and "))
	}
	for _, l := range o.Limits {
		part := func(is bool, format string, args ...any) {
			if is {
				list = append(list, fmt.Sprintf(format, args...))
			}
		}
		part(l.FlowsPerSecond > 0, "lets %g flows a second begin, %d at once", l.FlowsPerSecond, l.Burst)
		part(l.Flows > 0, "lets %d flows live", l.Flows)
		part(l.BytesPerSecond > 0, "lets %v a second pass", Size(l.BytesPerSecond))
		part(l.Quota > 0, "lets %v in %v pass", Size(l.Quota), l.Period)
	}
	for _, h := range o.Headers {
		list = append(list, "sets "+h.Name)
	}
	if o.Audit {
		list = append(list, "is recorded")
	}
	return strings.Join(list, ", ")
}

// setDestination reads ADDR:PORT or NAME:PORT.
func setDestination(r *policy.Request, dst string) error {
	to, err := tunnel.ParseAuthority(dst)
	if err != nil {
		return fmt.Errorf("dst: %w; it should be like 10.0.0.9:8080 or db.internal:5432", err)
	}
	r.Host, r.Addr, r.Port = to.Host, to.Addr, to.Port
	r.Unresolved = to.IsName()
	return nil
}

// count says how many there are.
func count(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

// someArgs is for commands that take one argument or more.
func someArgs(name, example string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return nil
		}
		return fmt.Errorf("`%s` takes a %s or several; it should be like `%[1]s %[3]s`", cmd.CommandPath(), name, example)
	}
}
