package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// The exit codes; docs/exit-codes.md explains them to users.
const (
	exitOK      = 0 // the command did what was asked
	exitFailure = 1 // it could not: a port in use, a hop that does not answer, an end by force
	exitUsage   = 2 // the command line or the configuration is wrong; nothing was started
)

func main() {
	os.Exit(execute(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs one command line and returns its exit code. Every failure ends as plain lines on stderr.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, err)
	return exitCode(err)
}

// exitCode maps an error to the exit code. What cobra itself refuses (an unknown command or flag, a
// missing argument) is a fault of usage, as are faults of the configuration; a command that ran and
// failed returns a failure.
func exitCode(err error) int {
	var f *failure
	if errors.As(err, &f) {
		return exitFailure
	}
	return exitUsage
}

// failure marks an error of a command that was asked for correctly and still could not be done.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }

// Unwrap returns the cause.
func (f *failure) Unwrap() error { return f.err }

// failed marks err as a failure at run time; nil stays nil, and faults of the configuration keep their
// own exit code.
func failed(err error) error {
	var wrong *faults
	if err == nil || errors.As(err, &wrong) {
		return err
	}
	return &failure{err}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "gateway",
		Short: "Carry streams between workloads inside mutually authenticated tunnels",
		Long: `Culvert carries TCP streams between workloads inside mutual TLS and HTTP/2 CONNECT
tunnels (HBONE). One binary is the entry, the exit, or any hop between.

Start with:    gateway demo
Documentation: README.md, docs/configuration.md, docs/exit-codes.md`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; `%s --help` lists the flags", err, cmd.CommandPath())
	})
	root.AddCommand(runCommand(), demoCommand(), checkCommand(), certCommand(), pingCommand(), versionCommand())
	return root
}
