package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"culvert/pki"
	"culvert/pki/spiffe"
	"culvert/pki/workloadapi"
)

// caPort is where Istio's CA listens, and ours.
const caPort = ":15012"

func caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Be the CA of a mesh: let hosts join, renew what they have, revoke it",
		Long: `Be the CA of a mesh without Kubernetes. The first host's gateway made a CA at its first start; this
lets other hosts have certificates of it, which live an hour and are renewed by themselves.

  gateway ca serve                                                   on the first host, beside gateway run
  gateway ca token spiffe://cluster.local/ns/default/sa/two          there, for a second host: prints
  gateway join --ca one.example:15012 --pin sha256:… --token …       what to run on it

Clients of Istio's CA, such as ztunnel, are served on the same port.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(caServeCommand(), caTokenCommand(), caRevokeCommand(), caRotateCommand(), caShowCommand())
	return cmd
}

// stateFlag adds --state, and returns what finds the folder.
func stateFlag(fs *pflag.FlagSet) func() (string, error) {
	var dir string
	fs.StringVar(&dir, "state", "", "`DIR` that the gateway of this host keeps its state in")
	return func() (string, error) { return (&Config{State: dir}).stateDir() }
}

// caFlags are the flags of `gateway ca serve`.
type caFlags struct {
	state           func() (string, error)
	listen, address string
	names           []string
	workloadAPI     string
	tokens          string
	workloads       []string
	log             LogConfig
	cfg             pki.AuthorityConfig
}

func caServeCommand() *cobra.Command {
	f := new(caFlags)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the CA until SIGTERM or SIGINT",
		Long: `Serve the CA in the state folder, which the gateway of this host may use at the same time.

On the port of --listen, over TLS: Istio's CreateCertificate, for hosts that join or renew and for
ztunnel; GET /bundle, the roots in SPIFFE's format; GET /crl. With --workload-api also the SPIFFE
Workload API, for the programs of this host that --workload names:

  gateway ca serve --workload-api /run/culvert/agent.sock \
    --workload 'uid=1000,path=/usr/bin/app=spiffe://cluster.local/ns/default/sa/app'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return failed(f.serve(cmd)) },
	}
	fs := cmd.Flags()
	f.state = stateFlag(fs)
	fs.StringVar(&f.listen, "listen", caPort, "serve on `ADDR`")
	fs.StringVar(&f.address, "address", "", "`HOST:PORT` that other hosts reach this CA at, for the commands that it prints (default: --listen, or this host's name)")
	fs.StringArrayVar(&f.names, "name", nil, "DNS `NAME` or IP address of this CA for clients that verify it, such as ztunnel (repeatable)")
	fs.StringVar(&f.cfg.TrustDomain, "trust-domain", "", "trust `DOMAIN`, if the CA is to be made (default cluster.local)")
	fs.DurationVar(&f.cfg.TTL, "ttl", pki.DefaultIssueTTL, "how long certificates are valid if the host does not ask for a time")
	fs.DurationVar(&f.cfg.MaxTTL, "max-ttl", pki.DefaultMaxTTL, "how long at most")
	fs.DurationVar(&f.cfg.Grace, "grace", pki.DefaultGrace, "how long after its end a certificate may still be renewed; negative: not at all")
	f.cfg.NameConstraints = new(bool)
	fs.BoolVar(f.cfg.NameConstraints, "name-constraints", false, "limit the intermediate CA to its trust domain; ztunnel refuses such chains")
	fs.StringVar(&f.tokens, "tokens", "", "take tokens of the OpenID Connect and Kubernetes issuers in `FILE` for certificates")
	fs.StringVar(&f.workloadAPI, "workload-api", "", "serve the SPIFFE Workload API on the Unix socket `PATH`")
	fs.StringArrayVar(&f.workloads, "workload", nil, "who gets which identity there, as `CONDITIONS=SPIFFE-ID`, with uid=N, gid=N and path=/FILE (repeatable)")
	fs.StringVar(&f.log.Level, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&f.log.Format, "log-format", "text", "text or json")
	if err := cmd.MarkFlagDirname("state"); err != nil {
		panic("BUG: " + err.Error())
	}
	return cmd
}

// faults are those of the command line.
func (f *caFlags) faults() (entries []workloadapi.Entry, err error) {
	found := new(faults)
	note := func(flag string, err error) {
		if err != nil {
			found.list = append(found.list, fault{flag: flag, what: err.Error()})
		}
	}
	_, err = parseLevel(f.log.Level)
	note("--log-level", err)
	note("--log-format", checkLogFormat(f.log.Format))
	note("--listen", checkListenAddress(f.listen))
	for _, text := range f.workloads {
		e, err := workloadapi.ParseEntry(text)
		if err == nil {
			_, err = spiffe.Parse(e.ID)
		}
		note("--workload", err)
		entries = append(entries, e)
	}
	if len(f.workloads) > 0 && f.workloadAPI == "" {
		note("--workload", errors.New("says who gets an identity from the Workload API; say where that is with --workload-api PATH"))
	}
	if f.address != "" {
		if _, port, err := net.SplitHostPort(f.address); err != nil || port == "" {
			note("--address", fmt.Errorf("%q is not like one.example:15012", f.address))
		}
	}
	return entries, found.err()
}

// reachedAt returns where other hosts reach a listener: what the user says, the address itself, or this host's name.
func (f *caFlags) reachedAt(ln net.Addr) (string, error) {
	if f.address != "" {
		return f.address, nil
	}
	host, port, err := net.SplitHostPort(ln.String())
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
		return ln.String(), nil
	}
	if host, err = os.Hostname(); err != nil {
		return "", fmt.Errorf("this host's name: %w; say how it is reached with --address HOST:PORT", err)
	}
	return net.JoinHostPort(strings.ToLower(host), port), nil
}

// serve runs the CA until a signal.
func (f *caFlags) serve(cmd *cobra.Command) error {
	entries, err := f.faults()
	if err != nil {
		return err
	}
	dir, err := f.state()
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more must not end the CA
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := newLogging(cmd.ErrOrStderr(), f.log)
	if err := noCoreDumps(); err != nil {
		log.Warn("core dumps, which hold keys, are not switched off", "err", err)
	}
	notify, err := newNotifier(os.Getenv)
	if err != nil {
		log.Warn("the service manager will not hear of this CA", "err", err)
	}
	defer notify.close()
	ln, err := net.Listen("tcp", f.listen)
	if err != nil {
		return fmt.Errorf("%w; choose another address with --listen ADDR", err)
	}
	defer ln.Close()
	addr, err := f.reachedAt(ln.Addr())
	if err != nil {
		return err
	}
	f.cfg.Names = f.serverNames(addr)
	if f.tokens != "" {
		tokens, err := f.openTokens(dir)
		if err != nil {
			return err
		}
		defer tokens.close()
		f.cfg.Tokens = tokens.identify
	}
	a, err := pki.OpenAuthority(dir, f.cfg, log.Logger)
	if err != nil {
		return flagFault(err)
	}
	defer a.Close()
	if err := a.Claim(); err != nil { // before the address: that of the process that signs stays
		return err
	}
	if err := a.SetAddress(addr); err != nil {
		return err
	}
	run, ctx := errgroup.WithContext(ctx)
	if f.workloadAPI != "" {
		api, err := workloadapi.Listen(workloadapi.Config{Path: f.workloadAPI, Entries: entries, Issuer: a.Workloads(), Log: log.Logger})
		if err != nil {
			return err
		}
		run.Go(func() error { return api.Serve(ctx) })
	}
	run.Go(func() error { return a.Serve(ctx, ln) })
	log.Info("CA serves", "id", a.ID().String(), "address", ln.Addr().String(), "host", addr)
	notify.ready()
	context.AfterFunc(ctx, notify.stopping)
	if err := run.Wait(); err != nil {
		return err
	}
	log.Info("CA ended")
	return a.Close()
}

// serverNames are the names of the CA's own certificate, for clients that verify them, when it is reached at addr.
func (f *caFlags) serverNames(addr string) []string {
	names := append([]string{"localhost", "127.0.0.1", "::1"}, f.names...)
	if host, _, _ := net.SplitHostPort(addr); host != "" && !strings.Contains(host, "_") { // it was put together
		names = append(names, strings.ToLower(host))
	}
	return names
}

// openTokens reads whose tokens are taken. Service accounts are of the CA's trust domain, which is made if need be.
func (f *caFlags) openTokens(dir string) (*caTokens, error) {
	a, err := pki.OpenAuthority(dir, f.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer a.Close()
	return readCATokens(f.tokens, a.ID().TrustDomain())
}

// openCA opens the CA of a command that does one thing. What it logs goes to stderr.
func openCA(cmd *cobra.Command, state func() (string, error)) (*pki.Authority, error) {
	dir, err := state()
	if err != nil {
		return nil, err
	}
	return pki.OpenAuthority(dir, pki.AuthorityConfig{MustExist: true}, newLogging(cmd.ErrOrStderr(), LogConfig{Level: "warn"}).Logger)
}

func caTokenCommand() *cobra.Command {
	var addr string
	var ttl time.Duration
	var names []string
	cmd := &cobra.Command{
		Use:   "token SPIFFE-ID",
		Short: "Print the command by which another host joins, once",
		Long: `Print the one command by which another host joins the mesh as SPIFFE-ID. It holds a token that is good
once, and for ten minutes; whoever has it can be that identity, so send it as you would a password.`,
		Args: oneArg("SPIFFE-ID", "spiffe://cluster.local/ns/default/sa/two"),
	}
	state := stateFlag(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := spiffe.Parse(args[0])
		if err != nil {
			return fmt.Errorf("%w; it should be like spiffe://cluster.local/ns/default/sa/two", err)
		}
		return failed(printToken(cmd, state, id, ttl, addr, names))
	}
	cmd.Flags().DurationVar(&ttl, "ttl", pki.DefaultTokenTTL, "how long the command can be used")
	cmd.Flags().StringVar(&addr, "ca", "", "`HOST:PORT` that the host reaches this CA at (default: as gateway ca serve has it)")
	cmd.Flags().StringArrayVar(&names, "name", nil, "DNS `NAME` or IP address beside the identity, for clients that verify host names (repeatable)")
	return cmd
}

// printToken makes a token and prints the command that uses it.
func printToken(cmd *cobra.Command, state func() (string, error), id spiffe.ID, ttl time.Duration, addr string, names []string) error {
	a, err := openCA(cmd, state)
	if err != nil {
		return err
	}
	defer a.Close()
	if addr == "" {
		addr = a.Address()
	}
	if addr == "" {
		return errors.New("nobody has served this CA yet, so it is not known how other hosts reach it; run gateway ca serve, or say it with --ca HOST:PORT")
	}
	token, err := a.NewToken(id, ttl, names...)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), "gateway join --ca %s --pin %s --token %s\n", addr, a.Pin(), token); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.ErrOrStderr(), "run it on the host that is to be %s, within %v\n", id, ttl)
	return err
}

func caRevokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke SERIAL|SPIFFE-ID",
		Short: "Revoke a certificate, or an identity: all that it has, and what it would get",
		Long: `Revoke all certificates of an identity, which also gets none any more until it joins with a new token; or
one certificate, by its serial number. They are in the CRL at once, and members that reach the CA know it at once.`,
		Args: oneArg("SERIAL|SPIFFE-ID", "spiffe://cluster.local/ns/default/sa/two"),
	}
	state := stateFlag(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a, err := openCA(cmd, state)
		if err != nil {
			return failed(err)
		}
		defer a.Close()
		n, err := a.Revoke(args[0])
		if err != nil {
			return failed(err)
		}
		what := fmt.Sprintf("%s more in the CRL", count(n, "certificate", "certificates"))
		if n == 0 {
			what = "no certificate more, for none is live that was not revoked before; see whether that is who you mean"
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "revoked %s: %s\n", args[0], what)
		return failed(err)
	}
	return cmd
}

func caRotateCommand() *cobra.Command {
	var now, auto bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the root, in three steps, without cutting anybody off",
		Long: `Replace the root. Each call is a step: a new root is announced and trusted, then it signs, then the old
one is no longer trusted. Between steps all members have to renew; before that the next step is refused.`,
		Args: noArgs,
	}
	state := stateFlag(cmd.Flags())
	cmd.Flags().BoolVar(&now, "now", false, "do not wait for members to renew: those that have not are cut off")
	cmd.Flags().BoolVar(&auto, "auto", false, "with the first step: gateway ca serve does the other two when their time has come")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a, err := openCA(cmd, state)
		if err != nil {
			return failed(err)
		}
		defer a.Close()
		phase, ready, err := a.Rotate(now, auto)
		if err != nil {
			return failed(err)
		}
		what := "the old root is trusted no more; the rotation is over"
		if phase != pki.PhaseNone {
			what = phase.String()
			next := "the next step may follow at once"
			if !ready.IsZero() {
				next = "the next step may follow at " + ready.Format(time.RFC3339)
			}
			what += "; " + next
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), what)
		return failed(err)
	}
	return cmd
}

func caShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the roots, what signs, and how much was issued and revoked",
		Args:  noArgs,
	}
	state := stateFlag(cmd.Flags())
	var members bool
	cmd.Flags().BoolVar(&members, "members", false, "list the identities that have live certificates, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a, err := openCA(cmd, state)
		if err != nil {
			return failed(err)
		}
		defer a.Close()
		s, err := a.Status()
		if err == nil {
			_, err = fmt.Fprint(cmd.OutOrStdout(), s)
		}
		if err == nil && members {
			err = printMembers(cmd.OutOrStdout(), a)
		}
		return failed(err)
	}
	return cmd
}

// printMembers prints a line for each identity that has certificates.
func printMembers(w io.Writer, a *pki.Authority) error {
	members, err := a.Members()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	for _, m := range members {
		fmt.Fprintf(out, "member:      %s, %s, until %s\n", m.ID, count(m.Certificates, "certificate", "certificates"), m.NotAfter.UTC().Format(time.RFC3339))
	}
	return out.Flush()
}
