package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const (
	// readyTimeout is how long a gateway may take to say whether it is ready: it looks at two words of memory.
	readyTimeout = 3 * time.Second
	// readyMaxBytes of the answer are shown, in case that something else is at the address.
	readyMaxBytes = 512
)

func readyCommand() *cobra.Command {
	r := &runFlags{}
	timeout := readyTimeout
	cmd := &cobra.Command{
		Use:   "ready -c FILE | ADDR",
		Short: "Ask a running gateway whether it is ready, for a container's health check",
		Long: `Ask a gateway of this host whether it takes flows: /readyz at its admin address, which is ADDR or
what FILE says. The exit code is 0 when it does, and 1 while it starts, drains or has no valid identity.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			address, err := readyAddress(r, args)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return failed(askReady(ctx, cmd.OutOrStdout(), address))
		},
	}
	r.addFile(cmd.Flags())
	cmd.Flags().DurationVar(&timeout, "timeout", readyTimeout, "give up after this time")
	return cmd
}

// readyAddress is where the gateway is to be asked: args, or what the configuration says.
func readyAddress(r *runFlags, args []string) (string, error) {
	switch {
	case len(args) == 1 && r.file != "":
		return "", errors.New("there are two addresses; give -c FILE or ADDR")
	case len(args) == 1:
		if err := checkListenAddress(args[0]); err != nil {
			return "", err
		}
		return reachable(args[0]), nil
	case r.file == "":
		return "", errors.New("no address; give that of `admin`, such as 127.0.0.1:15000, or -c FILE")
	}
	cfg, _, f := readConfig(r.file)
	if cfg.Admin.Address != "" {
		return reachable(cfg.Admin.Address), nil // what else is wrong with the file is not asked here
	}
	if f.broken {
		return "", f.err()
	}
	return "", fmt.Errorf("%s: admin.address is missing; it should be an address to ask at, such as 127.0.0.1:15000", r.file)
}

// reachable is an address to listen on as one to connect to: the unspecified address is this host.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	// Not by the name localhost, which a container without /etc/hosts does not know.
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip == netip.IPv4Unspecified() {
		host = "127.0.0.1"
	} else if err == nil && ip.IsUnspecified() {
		host = "::1"
	}
	return net.JoinHostPort(host, port)
}

// askReady prints what the gateway at address says; an error means that it is not ready.
func askReady(ctx context.Context, w io.Writer, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
	if err != nil {
		return err
	}
	// Not by a proxy of the environment, and no second connection.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("the gateway does not answer: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, readyMaxBytes))
	if err != nil {
		return fmt.Errorf("the answer of %s: %w", address, err)
	}
	said := strings.TrimSpace(string(text))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %q (status %d)", said, resp.StatusCode)
	}
	_, err = fmt.Fprintln(w, said)
	return err
}
