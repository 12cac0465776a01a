package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"culvert/pki"
	"culvert/pki/spiffe"
	"culvert/tunnel"
	"culvert/tunnel/h2"
)

// pingTimeout bounds the whole of a ping: resolving, TCP, TLS, HTTP/2.
const pingTimeout = 10 * time.Second

func pingCommand() *cobra.Command {
	r := &runFlags{}
	timeout := pingTimeout
	cmd := &cobra.Command{
		Use:   "ping HOP",
		Short: "Connect to a hop and show its identity, the transport and the round trip, or why not",
		Long: `Connect to a hop as this gateway would: TCP, mutual TLS, HTTP/2. HOP is a name from the
configuration (-c FILE) or host:port. No tunnel is opened. A hop that is a proxy of others (tun, proxy) has
no identity: TCP is tried, and TLS where it is spoken, and neither the token nor who is behind it.`,
		Args: oneArg("HOP", "exit.example:15008"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.changed = cmd.Flags().Changed
			return ping(cmd, r, args[0], timeout)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 || r.file == "" {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			cfg, _, _ := readConfig(r.file)
			var names []string
			for name := range cfg.Hops {
				names = append(names, name)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
	r.addFile(cmd.Flags())
	r.addIdentity(cmd.Flags())
	cmd.Flags().DurationVar(&timeout, "timeout", pingTimeout, "give up after this time")
	return cmd
}

func ping(cmd *cobra.Command, r *runFlags, name string, timeout time.Duration) error {
	cfg, p, f := r.identityConfig()
	if f.broken {
		return f.err()
	}
	hop, err := namedHop(cfg, name, r.file)
	if err != nil {
		return err
	}
	if err := f.err(); err != nil {
		return err
	}
	source, err := openIdentity(cmd.Context(), cfg, p, newLogging(cmd.ErrOrStderr(), LogConfig{Level: "warn"}).Logger)
	if err != nil {
		return failed(err)
	}
	defer source.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	var errs []error
	for _, address := range hopAddresses(hop) {
		if hop.Tun != "" || hop.Proxy != "" {
			err = pingProxy(ctx, cmd.OutOrStdout(), name, address, &hop)
		} else if result, problem := pingHop(ctx, source, address, hop.Identity); problem != nil {
			err = problem
		} else {
			err = result.print(cmd.OutOrStdout(), name, source.ID())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return failed(errors.Join(errs...))
}

// namedHop is a hop of the configuration, or one given as an address.
func namedHop(cfg *Config, name, file string) (tunnel.HopConfig, error) {
	if hop, known := cfg.Hops[name]; known {
		return hop, nil
	}
	if _, err := tunnel.ParseAuthority(name); err != nil {
		names := "give it with -c FILE"
		if file != "" {
			names = alternatives(name, cfg.Hops)
		}
		return tunnel.HopConfig{}, fmt.Errorf("%q is no hop; it should be host:port, or a name from the configuration (%s)", name, names)
	}
	return tunnel.HopConfig{Address: name}, nil
}

// hopAddresses are all addresses of a hop.
func hopAddresses(hop tunnel.HopConfig) []string {
	if hop.Address != "" {
		return []string{hop.Address}
	}
	var list []string
	for _, e := range hop.Endpoints {
		list = append(list, e.Address)
	}
	return list
}

// pong is what a ping found.
type pong struct {
	id      spiffe.ID
	address net.Addr
	tls     tls.ConnectionState
	dial    time.Duration // TCP, with resolving
	shake   time.Duration // TLS
	trip    time.Duration // one HTTP/2 PING
}

// pingHop connects to a hop, which must have an identity if one is given, asks for one round trip, and closes.
func pingHop(ctx context.Context, source *pki.Source, address, id string) (*pong, error) {
	start := time.Now()
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, dialError(address, "is the gateway running, and is that its hbone port?", err)
	}
	defer nc.Close()
	result := &pong{address: nc.RemoteAddr(), dial: time.Since(start)}
	var expected []spiffe.ID // none: any that policy takes for a hop
	if id != "" {
		one, err := spiffe.ParseName(id)
		if err != nil {
			return nil, err
		}
		expected = append(expected, one)
	}
	start = time.Now()
	tc := tls.Client(nc, source.ClientTLS(newIdentity(source).verifier(expected...)))
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS with %s: %w", nc.RemoteAddr(), handshakeHint(err))
	}
	result.shake, result.tls = time.Since(start), tc.ConnectionState()
	if result.id, err = pki.PeerID(result.tls); err != nil {
		return nil, err
	}
	conn, err := h2.NewClient(tc, &h2.Config{})
	if err != nil {
		return nil, fmt.Errorf("HTTP/2 with %s: %w", result.id, err)
	}
	defer conn.Close()
	if result.trip, err = conn.Ping(ctx); err != nil {
		// A refusal of our certificate comes with the first read, after the handshake (RFC 8446, section 4.4.2.4).
		return nil, fmt.Errorf("HTTP/2 with %s: %w", result.id, alertHint(errors.Join(err, conn.Err())))
	}
	return result, nil
}

// handshakeHint adds the likely cause to an error of the TLS handshake.
func handshakeHint(err error) error {
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &record) && record.Conn != nil:
		return fmt.Errorf("the hop does not speak TLS on this port; is it the port of its hbone listener? (%w)", err)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("the hop hung up in the handshake; is it the port of its hbone listener? (%w)", err)
	case isTimeout(err):
		return fmt.Errorf("the hop does not answer in TLS; is it the port of its hbone listener? (%w)", err)
	}
	return alertHint(err)
}

// alertHint adds what a TLS alert of the peer most likely means.
func alertHint(err error) error {
	number, ok := pki.Alert(err)
	if hint := pki.AlertHint(number); ok && hint != "" {
		return fmt.Errorf("%w; %s", err, hint)
	}
	return err
}

// dialError adds the likely cause to an error of connecting to a hop, and, where nothing listens there, what to ask.
func dialError(address, ask string, err error) error {
	_, port, _ := net.SplitHostPort(address)
	var dns *net.DNSError
	hint := ""
	switch {
	case errors.As(err, &dns):
		hint = "the name does not resolve on this host; check its spelling and the DNS settings"
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "nothing listens on port " + port + " there; " + ask
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		hint = "there is no way to that network from here"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		hint = "no answer; a firewall or a NetworkPolicy may block port " + port
	default:
		return fmt.Errorf("connect to %s: %w", address, err)
	}
	return fmt.Errorf("connect to %s: %s: %w", address, hint, rootCause(err))
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func (p *pong) print(w io.Writer, name string, self spiffe.ID) error {
	_, err := fmt.Fprintf(w, `%s answers
  address    %s
  identity   %s
  we are     %s
  transport  HTTP/2 (ALPN %s), %s, %s
  connect    %s, TLS handshake %s
  round trip %s
`, name, p.address, p.id, self, p.tls.NegotiatedProtocol, tls.VersionName(p.tls.Version), tls.CipherSuiteName(p.tls.CipherSuite),
		rounded(p.dial), rounded(p.shake), rounded(p.trip))
	return err
}

func rounded(d time.Duration) time.Duration { return d.Round(time.Microsecond) }
