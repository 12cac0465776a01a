package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"culvert/pki"
	"culvert/pki/spiffe"
)

// defaultTTL is for identities issued by hand: long enough not to be a chore.
const defaultTTL = 30 * 24 * time.Hour

func certCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "Make a CA, issue identities from it, and look at certificates",
		Long: `Make a CA, issue identities from it, and look at certificates: enough for a few hosts
without another PKI.

  gateway cert ca ca                                            a CA in the folder ca
  gateway cert issue spiffe://cluster.local/ns/default/sa/gw1   gw1.pem and gw1.key
  gateway run --cert gw1.pem --key gw1.key --roots ca/ca.pem …`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(certCACommand(), certIssueCommand(), certShowCommand())
	return cmd
}

func certCACommand() *cobra.Command {
	var trustDomain string
	cmd := &cobra.Command{
		Use:   "ca DIR",
		Short: "Make a CA in DIR: ca.pem, to be given to all, and ca.key, to be kept",
		Args:  oneArg("DIR", "ca"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ca, err := pki.CreateCA(args[0], trustDomain)
			if err != nil {
				return failed(err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "made a CA for trust domain %s, valid until %s\n  %s  the roots of every gateway\n  %s  keep it here\n",
				ca.TrustDomain(), ca.NotAfter().Format(time.DateOnly), filepath.Join(args[0], "ca.pem"), filepath.Join(args[0], "ca.key"))
			return failed(err)
		},
	}
	cmd.Flags().StringVar(&trustDomain, "trust-domain", "cluster.local", "trust `DOMAIN` that the CA signs for")
	return cmd
}

func certIssueCommand() *cobra.Command {
	var dir, out string
	var ttl time.Duration
	var names []string
	cmd := &cobra.Command{
		Use:   "issue SPIFFE-ID",
		Short: "Issue an identity: a certificate and its key",
		Args:  oneArg("SPIFFE-ID", "spiffe://cluster.local/ns/default/sa/gw1"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := spiffe.Parse(args[0])
			if err != nil {
				return fmt.Errorf("%w; it should be like spiffe://cluster.local/ns/default/sa/gw1", err)
			}
			if out == "" {
				out = filepath.Base(id.Path())
			}
			return failed(issue(cmd.OutOrStdout(), dir, out, id, ttl, names))
		},
	}
	cmd.Flags().StringVar(&dir, "ca", "ca", "`DIR` with ca.pem and ca.key")
	cmd.Flags().StringVar(&out, "out", "", "write PREFIX.pem and PREFIX.key, as `PREFIX` (default: the last part of the identity)")
	cmd.Flags().DurationVar(&ttl, "ttl", defaultTTL, "how long it is valid")
	cmd.Flags().StringArrayVar(&names, "name", nil, "DNS `NAME` or IP address to add, for clients that verify host names (repeatable)")
	return cmd
}

// issue writes a new identity to out.pem and out.key, never over one that is there.
func issue(w io.Writer, dir, out string, id spiffe.ID, ttl time.Duration, names []string) error {
	ca, err := pki.LoadCA(dir)
	if err != nil {
		return err
	}
	for _, file := range []string{out + ".pem", out + ".key"} {
		if _, err := os.Lstat(file); err == nil {
			return fmt.Errorf("%s is there already; remove it, or choose another name with --out PREFIX", file)
		}
	}
	cert, key, err := ca.Issue(id, ttl, names...)
	if err != nil {
		return err
	}
	if err := pki.WriteIdentity(out+".pem", out+".key", cert, key); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "issued %s\n  gateway run --cert %s.pem --key %s.key --roots %s …\n", id, out, out, filepath.Join(dir, "ca.pem"))
	return err
}

func certShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show FILE...",
		Short: "Show what is in PEM files; of a key, its kind only",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("`gateway cert show` takes the FILEs to show, and got none; it should be like `gateway cert show gw1.pem`")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, file := range args {
				if err := show(cmd.OutOrStdout(), file); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", file, err))
				}
			}
			return failed(errors.Join(errs...))
		},
	}
}

func show(w io.Writer, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("cannot be read: %w; check the path", rootCause(err))
	}
	blocks, err := pki.Describe(data)
	for i, b := range blocks {
		if _, err := fmt.Fprintf(w, "%s, block %d:\n%s\n", file, i+1, b); err != nil {
			return err
		}
	}
	return err
}

// demoIdentities makes, in dir, a CA and an identity for both gateways of the demo: roots.pem, entry.pem,
// entry.key, exit.pem, exit.key. A CA that is there is used again.
func demoIdentities(dir string) error {
	caDir := filepath.Join(dir, "ca")
	ca, err := pki.LoadCA(caDir)
	if err != nil {
		if ca, err = pki.CreateCA(caDir, demoTrustDomain); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "roots.pem"), ca.PEM(), 0o600); err != nil {
		return err
	}
	for _, who := range []string{"entry", "exit"} {
		id, err := spiffe.New(demoTrustDomain, demoNamespace, who)
		if err != nil {
			return err
		}
		cert, key, err := ca.Issue(id, defaultTTL)
		if err != nil {
			return err
		}
		if err := pki.WriteIdentity(filepath.Join(dir, who+".pem"), filepath.Join(dir, who+".key"), cert, key); err != nil {
			return err
		}
	}
	return nil
}
