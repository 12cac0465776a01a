package rules

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Command is a program of the system with what it reads.
type Command struct {
	Args  []string
	Stdin string
}

// String returns the command as a shell takes it.
func (c Command) String() string {
	text := shellWords(c.Args)
	if c.Stdin != "" {
		text += " <<'END'\n" + c.Stdin + "END"
	}
	return text
}

func shellWords(words []string) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		if w == "" || strings.ContainsAny(w, " \t\n'\"\\$*?[]{}()<>|&;~#`!") {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		b.WriteString(w)
	}
	return b.String()
}

// Step is one change of the system and what takes it back.
type Step struct {
	Do, Undo Command

	// check succeeds where the change is made; without it, there is what Do says on stderr, among other things, where
	// it was made before, and gone what Undo says where it was taken back before. None where the command does not mind.
	check       Command
	there, gone []string
}

// find returns the one of steps that changes what s does, if only with other input; nil if there is none.
func find(steps []Step, s Step) *Step {
	i := slices.IndexFunc(steps, func(other Step) bool { return slices.Equal(other.Do.Args, s.Do.Args) })
	if i < 0 {
		return nil
	}
	return &steps[i]
}

// lockSeconds is how long iptables waits for others that use it.
const lockSeconds = "10"

// plan returns the steps to k, in their order: the packet filter comes last, and in it what leads packets to our
// chains, so that nothing is led anywhere that is not ready.
func (k *compiled) plan() []Step {
	var steps []Step
	if k.tproxy() {
		steps = append(steps, k.routeSteps(false)...)
		if k.ipv6 {
			steps = append(steps, k.routeSteps(true)...)
		}
	}
	if k.Backend == BackendNFT {
		return append(steps, Step{
			Do:   Command{Args: []string{"nft", "-f", "-"}, Stdin: k.nft()},
			Undo: Command{Args: []string{"nft", "-f", "-"}, Stdin: fmt.Sprintf("add table inet %s\ndelete table inet %s\n", tableName, tableName)},
		})
	}
	steps = append(steps, k.iptablesSteps(false)...)
	if k.ipv6 {
		steps = append(steps, k.iptablesSteps(true)...)
	}
	return steps
}

// routeSteps lead what is marked to this host itself.
func (k *compiled) routeSteps(v6 bool) []Step {
	family, everything := "-4", "0.0.0.0/0"
	if v6 {
		family, everything = "-6", "::/0"
	}
	table := strconv.Itoa(routeTable)
	rule := []string{"priority", table, "fwmark", fmt.Sprintf("%#x/%#x", markCaptured, markMask), "lookup", table}
	route := []string{"local", everything, "dev", "lo", "table", table}
	ip := func(object, verb string, rest []string) Command {
		return Command{Args: append([]string{"ip", family, object, verb}, rest...)}
	}
	there, gone := []string{"File exists"}, []string{"No such process", "No such file or directory", "FIB table does not exist"}
	return []Step{
		{Do: ip("route", "add", route), Undo: ip("route", "del", route), there: there, gone: gone},
		{Do: ip("rule", "add", rule), Undo: ip("rule", "del", rule), there: there, gone: gone},
	}
}

// iptablesSteps are the sets, the chains and what leads to the chains.
func (k *compiled) iptablesSteps(v6 bool) []Step {
	program, family := "iptables", "inet"
	if v6 {
		program, family = "ip6tables", "inet6"
	}
	var steps []Step
	if k.Fail == FailOpen {
		for _, port := range k.gates() {
			name := ipsetName(port, v6)
			steps = append(steps, Step{
				Do:   Command{Args: []string{"ipset", "-exist", "create", name, "hash:net", "family", family, "timeout", strconv.Itoa(int(aliveFor.Seconds()))}},
				Undo: Command{Args: []string{"ipset", "destroy", name}}, gone: []string{"does not exist"},
			})
		}
	}
	restore := []string{program + "-restore", "-w", lockSeconds, "--noflush", "-T", k.table()}
	steps = append(steps, Step{Do: Command{Args: restore, Stdin: k.restore(v6)}, Undo: Command{Args: restore, Stdin: k.drop()}})
	for _, hook := range [][2]string{{"OUTPUT", chainOutput}, {"PREROUTING", chainPre}} {
		jump := func(verb string) Command {
			return Command{Args: []string{program, "-w", lockSeconds, "-t", k.table(), verb, hook[0], "-j", hook[1]}}
		}
		steps = append(steps, Step{Do: jump("-I"), Undo: jump("-D"), check: jump("-C")})
	}
	return steps
}
