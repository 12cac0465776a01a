package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert/policy"
	"culvert/tunnel"
)

func policyReplayCommand() *cobra.Command {
	r := new(replayFlags)
	cmd := &cobra.Command{
		Use:   "replay --policy FILE [-c CONFIG] [LOG...]",
		Short: "Ask a policy again what gateways were asked, and list what would change",
		Long: `Ask policies that are to come what gateways were asked, by the records in their logs, and
list every decision that would change: who, where to, how often and by which rule.

  gateway policy replay --policy next.yaml gateway.log
  journalctl -u culvert -o cat --since yesterday | gateway policy replay --policy next.yaml

LOGs are of --log-format text or json, in whole or cut at any line, of one gateway or of
several, also compressed by gzip; without any it is standard input. With -c the workloads,
the name and policy.allow of that configuration count, and without --policy its files.

The decision that counts is that of the beginning of a flow, of the gateway that wrote the
record: not what other gateways, authorizers or the egress guard have made of it.

The exit code is 0 when nothing would change, 3 when something would, and 1 when nothing
would as far as that can be told: some records could not be replayed, or there was none.`,
		RunE: func(cmd *cobra.Command, logs []string) error { return r.run(cmd, logs) },
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&r.files, "policy", nil, "policy `FILE` to ask (repeatable)")
	fs.StringVarP(&r.config, "config", "c", "", "configuration `FILE` of the gateway, for what its workloads are")
	fs.StringArrayVar(&r.allow, "allow", nil, "let `PRINCIPAL` in besides, as of `gateway run` (repeatable)")
	fs.BoolVar(&r.json, "json", false, "print JSON, for machines")
	return cmd
}

// replayFlags are what a replay is asked for.
type replayFlags struct {
	files  []string
	config string
	allow  []string
	json   bool
}

func (f *replayFlags) run(cmd *cobra.Command, logs []string) error {
	c, err := f.candidate()
	if err != nil {
		return err
	}
	r := newReplay(c)
	if err := eachLog(cmd.InOrStdin(), logs, r.read); err != nil {
		return err
	}
	print := r.print
	if f.json {
		print = r.printJSON
	}
	if err := print(cmd.OutOrStdout()); err != nil {
		return failed(err)
	}
	return r.verdict()
}

// candidate reads what is to be asked.
func (f *replayFlags) candidate() (*candidate, error) {
	var cfg *Config
	wrong := new(faults)
	files := f.files
	if f.config != "" {
		var p *places
		cfg, p, wrong = readConfig(f.config)
		validate(cfg, p, wrong)
		if len(files) == 0 {
			files = cfg.Policy.Files
		}
	}
	if len(files) == 0 && f.config == "" {
		return nil, errors.New("--policy is missing; it should be the file to ask, such as --policy next.yaml")
	}
	policies := readPolicies(files, wrong)
	if wrong.err() == nil {
		policies.compile(policy.Config{Allow: f.allow, Authorizers: policies.authorizers()})
	}
	if err := wrong.err(); err != nil {
		return nil, err
	}
	return newCandidate(policies, f.allow, cfg), nil
}

// Bounds of what is listed; what is beyond is counted.
const (
	maxChanges     = 1 << 16
	maxChangeBytes = 64 << 20
)

// replay is what comes of asking again.
type replay struct {
	candidate *candidate
	summary   replaySummary
	problems  map[string]int
	changes   map[changeKey]*replayChange
	bytes     int // of the keys
}

// replaySummary counts the records.
type replaySummary struct {
	Flows     int `json:"flows"`      // records that were found
	Replayed  int `json:"replayed"`   // of which so many were asked again
	NotAsked  int `json:"not_asked"`  // were refused before policy was asked
	Problems  int `json:"problems"`   // and cannot be replayed
	Changed   int `json:"changed"`    // would be decided otherwise
	NotListed int `json:"not_listed"` // of which so many are not in the list, which is full
	Other     int `json:"other"`      // lines that are no records of flows

	Broken []string `json:"broken,omitempty"` // logs that could not be read to their end, and why
}

// changeKey is what flows of one change have in common.
type changeKey struct {
	Gateway     string `json:"gateway"`
	Peer        string `json:"peer"` // "": none
	Listener    string `json:"listener"`
	Destination string `json:"destination"`
	Was         string `json:"was"`      // allow or deny
	WouldBe     string `json:"would_be"` // the other
	Rule        string `json:"rule"`     // that would decide
	Place       string `json:"place"`    // where it is written
}

// replayChange is a decision that would be another one.
type replayChange struct {
	changeKey
	WasRule string `json:"was_rule"` // that decided; "": the records do not tell
	Reason  string `json:"reason"`
	// NameOnly tells that the addresses of the name are not known, and would be asked about.
	NameOnly bool      `json:"name_only"`
	Flows    int       `json:"flows"`
	First    time.Time `json:"first"` // when the first of the flows has ended
	Last     time.Time `json:"last"`
}

func newReplay(c *candidate) *replay {
	return &replay{candidate: c, problems: make(map[string]int), changes: make(map[changeKey]*replayChange)}
}

// read replays one log. What can be read of one that is broken counts.
func (p *replay) read(name string, log io.Reader) {
	d, err := newRecordReader(log)
	if err != nil {
		p.summary.Broken = append(p.summary.Broken, fmt.Sprintf("%s: %v", name, err))
		return
	}
	defer func() { p.summary.Other += d.other }()
	for {
		r, problem, err := d.next()
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			p.summary.Broken = append(p.summary.Broken, fmt.Sprintf("%s: cannot be read to its end: %v", name, err))
			return
		}
		p.summary.Flows++
		if problem == nil {
			problem = p.flow(r)
		}
		if problem != nil {
			p.summary.Problems++
			p.problems[problem.Error()]++
		}
	}
}

// flow asks again about one flow. The error is why that cannot be done.
func (p *replay) flow(r *flowRecord) error {
	was := string(r.get(keyDecided))
	switch {
	case !r.has(keyDecided):
		return errAskOld
	case was == "none":
		p.summary.NotAsked++
		return nil
	case was != "allow" && was != "deny":
		return errAskValue
	}
	at, err := time.Parse(time.RFC3339Nano, string(r.get(keyTime)))
	if err != nil {
		return errAskValue
	}
	a := p.candidate.ask(r)
	if a.problem != nil {
		return a.problem
	}
	p.summary.Replayed++
	if a.Allow != (was == "allow") {
		p.summary.Changed++
		p.change(r, a, was, at)
	}
	return nil
}

// change counts a flow whose decision would be another one.
func (p *replay) change(r *flowRecord, a *answer, was string, at time.Time) {
	k := changeKey{
		Gateway: string(r.get(keySelf)), Peer: string(r.get(keyPeer)), Listener: string(r.get(keyListener)), Was: was,
		Destination: string(r.get(keyHost)), WouldBe: verdictOf(a.Allow), Rule: a.Rule, Place: a.Place.String(),
	}
	if k.Destination == "" {
		k.Destination = string(r.get(keyDst))
	}
	c := p.changes[k]
	if c == nil {
		size := len(k.Gateway) + len(k.Peer) + len(k.Listener) + len(k.Destination) + len(a.Reason)
		if len(p.changes) >= maxChanges || p.bytes+size > maxChangeBytes {
			p.summary.NotListed++
			return
		}
		p.bytes += size
		c = &replayChange{changeKey: k, Reason: a.Reason, NameOnly: a.nameOnly && a.Allow, First: at, Last: at}
		p.changes[k] = c
	}
	c.Flows++
	if at.Before(c.First) {
		c.First = at
	}
	if at.After(c.Last) {
		c.Last = at
	}
	if c.WasRule == "" && (was == "deny" || r.endedByNoRule()) {
		c.WasRule = string(r.get(keyRule))
	}
}

// endedByNoRule reports whether the rule in the record of a flow that was allowed is the one that allowed it, and not that
// of a later decision.
func (r *flowRecord) endedByNoRule() bool {
	switch string(r.get(keyReason)) {
	case "", tunnel.CauseSourceGone.String(), tunnel.CauseSourceBroke.String(), tunnel.CauseDestinationBroke.String(),
		tunnel.CauseIdle.String(), tunnel.CauseAge.String(), tunnel.CauseCut.String():
		return !r.has(keyBy)
	}
	return false
}

// verdictOf is the word for a decision.
func verdictOf(allow bool) string {
	if allow {
		return "allow"
	}
	return "deny"
}

// list returns the changes, those of most flows first.
func (p *replay) list() []*replayChange {
	return slices.SortedFunc(maps.Values(p.changes), func(a, b *replayChange) int {
		return cmp.Or(cmp.Compare(b.Flows, a.Flows), cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Destination, b.Destination),
			cmp.Compare(a.Listener, b.Listener), cmp.Compare(a.Gateway, b.Gateway), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Place, b.Place), cmp.Compare(a.Was, b.Was))
	})
}

// replayProblem is why some records cannot be replayed.
type replayProblem struct {
	Reason string `json:"reason"`
	Flows  int    `json:"flows"`
}

func (p *replay) problemList() []replayProblem {
	list := []replayProblem{}
	for _, reason := range slices.Sorted(maps.Keys(p.problems)) {
		list = append(list, replayProblem{reason, p.problems[reason]})
	}
	return list
}

// print writes the list for people: two lines for each change.
func (p *replay) print(w io.Writer) error {
	var b strings.Builder
	s := &p.summary
	fmt.Fprintf(&b, "%s read, %d replayed, %d would change\n", count(s.Flows, "flow", "flows"), s.Replayed, s.Changed)
	if s.NotAsked > 0 {
		fmt.Fprintf(&b, "%s refused before policy was asked\n", count(s.NotAsked, "flow was", "flows were"))
	}
	for _, one := range p.problemList() {
		fmt.Fprintf(&b, "%s cannot be replayed: %s\n", count(one.Flows, "flow", "flows"), one.Reason)
	}
	for _, one := range s.Broken {
		fmt.Fprintf(&b, "%s\n", one)
	}
	list := p.list()
	several := slices.ContainsFunc(list, func(c *replayChange) bool { return c.Gateway != list[0].Gateway })
	for _, c := range list {
		c.print(&b, several)
	}
	if s.NotListed > 0 {
		fmt.Fprintf(&b, "and %s, for which this list has no room\n", count(s.NotListed, "flow more", "flows more"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// print writes one change; gateway tells that its gateway is to be named.
func (c *replayChange) print(b *strings.Builder, gateway bool) {
	peer := c.Peer
	if peer == "" {
		peer = "nobody that is known"
	}
	fmt.Fprintf(b, "\n%s → %s: %s, %s → %s at %s", c.Was, c.WouldBe, count(c.Flows, "flow", "flows"), peer, plain(c.Destination), plain(c.Listener))
	if gateway {
		fmt.Fprintf(b, " of %s", c.Gateway)
	}
	fmt.Fprintf(b, "\n  by %s", plain(c.Rule))
	if c.Place != "" {
		fmt.Fprintf(b, " (%s)", c.Place)
	}
	fmt.Fprintf(b, ": %s", c.Reason)
	if c.NameOnly {
		b.WriteString("; its addresses, which are not known, would be asked about")
	}
	if c.WasRule != "" {
		fmt.Fprintf(b, "; it was by %s", plain(c.WasRule))
	}
	first, last := c.First.Format(time.RFC3339), c.Last.Format(time.RFC3339)
	if first == last {
		fmt.Fprintf(b, "\n  at %s\n", first)
		return
	}
	fmt.Fprintf(b, "\n  from %s to %s\n", first, last)
}

// plain quotes what could change the look of a terminal, or of the line.
func plain(s string) string {
	if quoted := strconv.QuoteToASCII(s); len(quoted) != len(s)+2 {
		return quoted
	}
	return s
}

// printJSON writes the same for machines, as one object.
func (p *replay) printJSON(w io.Writer) error {
	list := p.list()
	if list == nil {
		list = []*replayChange{}
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(struct {
		replaySummary
		NotReplayed []replayProblem `json:"not_replayed"`
		Changes     []*replayChange `json:"changes"`
	}{p.summary, p.problemList(), list})
}

// verdict is what the exit code tells, with a line that says it.
func (p *replay) verdict() error {
	s := &p.summary
	switch {
	case s.Changed > 0:
		return &changed{fmt.Errorf("%s would be decided otherwise", count(s.Changed, "flow", "flows"))}
	case len(s.Broken) > 0:
		return failed(errors.New("nothing would change as far as it can be told: a log cannot be read to its end"))
	case s.Flows == 0:
		return failed(errors.New("there is no record of a flow; a gateway logs them at --log-level info, one for each flow at its end"))
	case s.Problems > 0:
		return failed(fmt.Errorf("nothing would change as far as it can be told: %s cannot be replayed", count(s.Problems, "flow", "flows")))
	}
	return nil
}
