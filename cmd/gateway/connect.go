package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/spf13/cobra"

	"culvert/tunnel"
	"culvert/tunnel/h2"
)

func connectCommand() *cobra.Command {
	r := &runFlags{}
	var via []string
	cmd := &cobra.Command{
		Use:   "connect HOST:PORT",
		Short: "Open one tunnel and carry standard input and output through it",
		Long: `Open a tunnel to HOST:PORT through hops, and carry standard input and output through it:
for ssh's ProxyCommand, for scripts, or to try whether something can be reached.

  ssh -o ProxyCommand='gateway connect --via exit.example:15008 %h:%p' db.internal
  gateway connect -c gw.yaml --via east,inner db.internal:5432

HOP is a name from the configuration (-c FILE) or host:port. HOST is resolved at the last one.`,
		Args: oneArg("HOST:PORT", "db.internal:22"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.changed = cmd.Flags().Changed
			return connect(cmd, r, via, args[0])
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	r.addFile(cmd.Flags())
	r.addIdentity(cmd.Flags())
	cmd.Flags().StringSliceVar(&via, "via", nil, "go through `HOP[,HOP]`, nearest first")
	return cmd
}

func connect(cmd *cobra.Command, r *runFlags, via []string, to string) error {
	cfg, p, f := r.identityConfig()
	if f.broken {
		return f.err()
	}
	if _, err := tunnel.ParseAuthority(to); err != nil {
		return fmt.Errorf("%w; it should be like db.internal:22", err)
	}
	hops, err := namedHops(cfg, via, r.file)
	if err != nil {
		return err
	}
	if err := f.err(); err != nil {
		return err
	}
	log := newLogging(cmd.ErrOrStderr(), LogConfig{Level: "warn"})
	source, err := openIdentity(cmd.Context(), cfg, p, log.Logger)
	if err != nil {
		return failed(err)
	}
	defer source.Close()
	id := newIdentity(source)
	d, err := tunnel.NewDialer(tunnel.Env{Log: log.Logger, Self: id.self, ClientTLS: id.clientTLS, H2: h2.Config{Logger: log.Logger}}, hops...)
	if err != nil {
		return err
	}
	defer d.Close()
	nc, err := d.DialContext(cmd.Context(), "tcp", to)
	if err != nil {
		return failed(fmt.Errorf("connect to %s: %w", to, connectHint(err)))
	}
	return failed(carryStdio(cmd.Context(), nc, cmd.InOrStdin(), cmd.OutOrStdout()))
}

// namedHops are the hops of --via: of the configuration, or given as addresses.
func namedHops(cfg *Config, via []string, file string) (hops []tunnel.HopConfig, err error) {
	if len(via) == 0 {
		return nil, errors.New("--via: no hop to go through; name one, such as --via exit.example:15008")
	}
	for i, name := range via {
		if slices.Contains(via[:i], name) {
			return nil, fmt.Errorf("--via: hop %q is there twice; name each hop once", name)
		}
		hop, err := namedHop(cfg, name, file)
		if err != nil {
			return nil, fmt.Errorf("--via: %w", err)
		}
		hops = append(hops, hop)
	}
	return hops, nil
}

// connectHint says more of an error of opening a tunnel.
func connectHint(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" && op.Err != nil {
		err = op.Err
	}
	return alertHint(err)
}

// carryStdio carries in to nc and nc to out, until nc has ended its side; then what is still to come from in has
// nobody to go to.
func carryStdio(ctx context.Context, nc net.Conn, in io.Reader, out io.Writer) error {
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { _ = nc.Close() })()
	go func() { // ends with in or nc; nobody waits for a terminal
		if _, err := io.Copy(nc, in); err == nil {
			_ = nc.(interface{ CloseWrite() error }).CloseWrite() // the reader finds out what is wrong
		}
	}()
	_, err := io.Copy(out, nc)
	return err
}
