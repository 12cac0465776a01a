package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The exit codes; docs/exit-codes.md explains them to users.
const (
	exitOK      = 0 // the command did what was asked
	exitFailure = 1 // it could not: a port in use, a hop that does not answer, an end by force
	exitUsage   = 2 // the command line or the configuration is wrong; nothing was started
	exitChanged = 3 // it was done, and found that something would change
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
	var c *changed
	switch {
	case errors.As(err, &f):
		return exitFailure
	case errors.As(err, &c):
		return exitChanged
	}
	return exitUsage
}

// changed marks what a command has found that was asked whether something would change.
type changed struct{ error }

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

// flagError says what is wrong with a flag, and what would be right.
func flagError(cmd *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return fmt.Errorf("%w; `%s --help` lists the flags", err, cmd.CommandPath())
	}
	f := fault{flag: "--" + invalid.GetFlag().Name, what: invalid.Unwrap().Error()}
	if invalid.GetFlag().Value.Type() == "duration" {
		f.what = fmt.Sprintf("%q is not %s", invalid.GetValue(), timeWanted)
	}
	return (&faults{list: []fault{f}}).err()
}

// noArgs is for commands that take no argument.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case !cmd.HasAvailableSubCommands():
		return fmt.Errorf("`%s` takes no argument, and got %q; `%[1]s --help` says what it takes", cmd.CommandPath(), args[0])
	}
	cmd.SuggestionsMinimumDistance = 2
	meant := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		meant = fmt.Sprintf("did you mean %q? ", near[0])
	}
	return fmt.Errorf("unknown command %q; %s`%s --help` lists the commands", args[0], meant, cmd.CommandPath())
}

// oneArg is for commands that take one argument, called name; example is one.
func oneArg(name, example string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return fmt.Errorf("`%s` takes one %s, and got %d; it should be like `%[1]s %[4]s`", cmd.CommandPath(), name, len(args), example)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "gateway",
		Short: "Carry streams between workloads inside mutually authenticated tunnels",
		Long: `Culvert carries TCP and UDP between workloads inside mutual TLS and HTTP/2 CONNECT
tunnels (HBONE). One binary is the entry, the exit, or any hop between.

Start with:    gateway demo
Documentation: README.md, docs/configuration.md, docs/exit-codes.md`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(runCommand(), demoCommand(), checkCommand(), configCommand(), certCommand(), caCommand(), joinCommand(), agentCommand(), readyCommand(), pingCommand(), connectCommand(),
		captureCommand(), policyCommand(), versionCommand())
	return root
}
