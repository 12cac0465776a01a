package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"culvert/pki"
)

// joinTimeout is how long a join may take; the network is at fault then.
const joinTimeout = 30 * time.Second

func joinCommand() *cobra.Command {
	var cfg pki.JoinConfig
	cmd := &cobra.Command{
		Use:   "join --ca HOST:PORT --pin PIN --token TOKEN",
		Short: "Let this host join the mesh of another one",
		Long: `Let this host join the mesh of another one, with the command that gateway ca token prints there. It makes
a key, which stays here, and has the CA sign it; the gateway that is started with the same state
folder afterwards has that identity, and renews it by itself.`,
		Args: noArgs,
	}
	state := stateFlag(cmd.Flags())
	cmd.Flags().StringVar(&cfg.Address, "ca", "", "the CA, as `HOST:PORT`")
	cmd.Flags().StringVar(&cfg.Pin, "pin", "", "the `PIN` that the CA is known by, sha256: and 64 digits")
	cmd.Flags().StringVar(&cfg.Token, "token", "", "the one-time `TOKEN`")
	cmd.Flags().BoolVar(&cfg.Replace, "replace", false, "put a CA and an identity aside that a gateway made here at its first start")
	for _, flag := range []string{"ca", "pin", "token"} {
		if err := cmd.MarkFlagRequired(flag); err != nil {
			panic("BUG: " + err.Error())
		}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if cfg.Dir, err = state(); err != nil {
			return failed(err)
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		ctx, cancel := context.WithTimeout(ctx, joinTimeout)
		defer cancel()
		m, err := pki.Join(ctx, cfg)
		if err != nil {
			return failed(flagFault(err))
		}
		flag := ""
		if cmd.Flags().Changed("state") {
			flag = " --state " + cfg.Dir
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), `joined as %s, until %s and then renewed
  gateway run%s --hbone :15008                             let other members reach this host
  gateway run%[3]s --via HOST:15008 --socks 127.0.0.1:1080    reach others through theirs
`, m.ID, m.NotAfter.UTC().Format(time.RFC3339), flag)
		return failed(err)
	}
	return cmd
}

// flagFault makes a fault of the flag that a setting came from, if err is about a setting and not about a file.
func flagFault(err error) error {
	var setting *pki.ConfigError
	if !errors.As(err, &setting) || setting.File != "" {
		return err
	}
	what := setting.Detail
	if setting.Mend != "" {
		what += "; " + setting.Mend
	}
	return (&faults{list: []fault{{flag: "--" + setting.Field, what: what}}}).err()
}
