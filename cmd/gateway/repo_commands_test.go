package main

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"culvert/tunnel"
)

// TestRepoCommandsExist tries every `gateway …` line in the code parts of the documents against the command tree: each
// must name a command, and flags that the command has.
func TestRepoCommandsExist(t *testing.T) {
	command := regexp.MustCompile(`^(?:\$ |# |sudo )?(?:\./)?(?:bin/)?gateway( .*)?$`)
	for _, name := range repoDocs(t) {
		code, _ := repoSplit(strings.ReplaceAll(string(repoRead(t, name)), "\\\n", " "))
		for _, line := range code {
			m := command.FindStringSubmatch(strings.TrimSpace(line))
			if m == nil {
				continue
			}
			if fault := repoCommandFault(strings.TrimSpace(m[1])); fault != "" {
				t.Errorf("%s: `%s`: %s", name, strings.TrimSpace(line), fault)
			}
		}
	}
}

// repoCommandFault says what is wrong with the words after "gateway", which may end in a comment or a shell operator.
func repoCommandFault(line string) string {
	line, _, _ = strings.Cut(line, " #")
	line, _, _ = strings.Cut(line, " |")
	line = strings.TrimSuffix(strings.TrimSpace(line), " &")
	words := strings.Fields(line)
	root := rootCommand()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(words...)
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err.Error()
	}
	if cmd == root && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return "no such command"
	}
	cmd.InitDefaultHelpFlag()
	for _, word := range rest {
		if flag, _, _ := strings.Cut(word, "="); strings.HasPrefix(flag, "-") && !repoHasFlag(cmd, flag) {
			return cmd.CommandPath() + " has no flag " + flag
		}
	}
	return ""
}

// TestRepoCausesAreDocumented finds words for the end of a flow that docs/operations.md does not explain.
func TestRepoCausesAreDocumented(t *testing.T) {
	code, _ := repoSplit(string(repoRead(t, "docs/operations.md")))
	for c := tunnel.CauseNone; !strings.HasPrefix(c.String(), "cause "); c++ {
		if !slices.Contains(code, c.String()) {
			t.Errorf("docs/operations.md: nothing about `%s`", c)
		}
	}
}

// TestRepoMetricsInDocsExist looks for the metrics that documents name in the code that makes them.
func TestRepoMetricsInDocsExist(t *testing.T) {
	made := string(repoRead(t, "cmd/gateway/metrics.go")) + string(repoRead(t, "cmd/gateway/metrics_endpoints.go"))
	for _, name := range repoDocs(t) {
		for _, m := range regexp.MustCompile(`\bculvert_(\w+)`).FindAllStringSubmatch(string(repoRead(t, name)), -1) {
			if !strings.Contains(made, `"`+m[1]+`"`) {
				t.Errorf("%s: there is no metric %s", name, m[0])
			}
		}
	}
}

func repoHasFlag(cmd *cobra.Command, flag string) bool {
	if name, long := strings.CutPrefix(flag, "--"); long {
		return cmd.Flags().Lookup(name) != nil || cmd.InheritedFlags().Lookup(name) != nil
	}
	name := strings.TrimPrefix(flag, "-")
	return len(name) == 1 && (cmd.Flags().ShorthandLookup(name) != nil || cmd.InheritedFlags().ShorthandLookup(name) != nil)
}
