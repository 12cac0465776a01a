package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// replayed runs `gateway policy replay` on a log on standard input.
func replayed(t *testing.T, candidate string, log io.Reader, args ...string) (code int, out string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "next.yaml")
	if err := os.WriteFile(file, []byte(candidate), 0o600); err != nil {
		t.Fatal(err)
	}
	root := rootCommand()
	var text bytes.Buffer
	root.SetIn(log)
	root.SetOut(&text)
	root.SetErr(&text)
	root.SetArgs(append([]string{"policy", "replay", "--policy", file}, args...))
	if err := root.ExecuteContext(t.Context()); err != nil {
		fmt.Fprintln(&text, err)
		code = exitCode(err)
	}
	return code, strings.ReplaceAll(text.String(), filepath.Dir(file)+string(filepath.Separator), "")
}

// dayPolicy is what the gateways of these tests decide by.
const dayPolicy = `rules:
- name: mesh
  to: [{ports: ["80", "81", "82"]}]
- name: no-orders-admin
  action: deny
  workloads: {labels: {app: orders}}
  to: [{ports: ["81"]}]
- name: not-inside
  action: deny
  when: [{key: destination.ip, values: ["10.7.0.0/16"]}]
`

// dayWorkloads are theirs.
var dayWorkloads = []tunnel.WorkloadConfig{{Name: "orders", Namespace: "shop", Labels: map[string]string{"app": "orders"}, Addresses: []string{"10.0.0.9"}}}

// dayConfig is a configuration with them.
const dayConfig = `listeners: [{name: mesh, kind: hbone, address: "127.0.0.1:0"}]
routes: [{listeners: [mesh], destinations: [local]}]
workloads: [{name: orders, namespace: shop, labels: {app: orders}, addresses: [10.0.0.9]}]
`

// rulesOf reads rules as a gateway does.
func rulesOf(t *testing.T, text string) *policies {
	t.Helper()
	p := &policies{faults: new(faults)}
	p.read("day.yaml", []byte(text))
	p.compile(policy.Config{Namespace: "default", TrustDomain: "cluster.local"})
	if err := p.faults.err(); err != nil {
		t.Fatal(err)
	}
	return p
}

// aDay lets two gateways carry flows of all kinds, and returns their log, with how many flows of a gateway each kind has.
func aDay(t *testing.T, format string) (log string, flows int) {
	t.Helper()
	rules := rulesOf(t, dayPolicy)
	var text tunneltest.Log
	options := &slog.HandlerOptions{}
	var h slog.Handler = slog.NewTextHandler(&text, options)
	if format == "json" {
		h = slog.NewJSONHandler(&text, options)
	}
	names := map[string][]string{"one.example": {"10.8.0.1"}, "two.example": {"10.8.0.1", "10.8.0.2"}, "mixed.example": {"10.8.0.1", "10.7.0.1"}, "inside.example": {"10.7.0.1"}}
	p := tunneltest.NewPair(t, tunneltest.Options{
		Log: h,
		Exit: func(c *tunnel.Config) {
			c.Workloads = dayWorkloads
			c.Policy.Rules, c.Policy.Peers = rules.sets, rules.peers
			c.Policy.Egress = []string{"10.8.0.0/16", "10.7.0.0/16", "*.example"}
			c.Routes = append(c.Routes, tunnel.RouteConfig{Listeners: []string{"mesh"}, Hosts: []string{"*.example"}})
		},
		ExitEnv: func(e *tunnel.Env) {
			e.Resolve = func(_ context.Context, host string) (list []netip.Addr, err error) {
				for _, a := range names[host] {
					list = append(list, netip.MustParseAddr(a))
				}
				return list, nil
			}
		},
	})
	for _, at := range []string{"10.0.0.2:80", "10.0.0.9:80", "10.8.0.1:80", "10.8.0.2:80", "10.7.0.1:80"} {
		p.Echo(t, at)
	}
	targets := []string{
		"10.0.0.2:80", "10.0.0.2:80", "10.0.0.2:81", "10.0.0.2:90", "10.0.0.9:80", "10.0.0.9:81", "192.0.2.9:80",
		"one.example:80", "two.example:80", "two.example:81", "mixed.example:80", "inside.example:80", "none.example:80", "one.example:90", "elsewhere.test:80",
	}
	for _, target := range targets {
		if app, err := p.Dial(t.Context(), target); err == nil {
			_ = app.Close()
		}
	}
	eventually(t, "the end of all flows", func() error {
		if n := p.Entry.Stats().Active + p.Exit.Stats().Active; n > 0 {
			return fmt.Errorf("%d live", n)
		}
		return nil
	})
	p.Entry.Close()
	p.Exit.Close()
	return text.String(), 2 * len(targets)
}

// What gateways have decided, the same policy decides again, of every kind of flow, in either form of log, and nothing
// else is listed for another policy than what it changes.
func TestReplayOfRealFlows(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		t.Run(format, func(t *testing.T) {
			log, flows := aDay(t, format)
			config := filepath.Join(t.TempDir(), "gw.yaml")
			if err := os.WriteFile(config, []byte(dayConfig), 0o600); err != nil {
				t.Fatal(err)
			}
			// The entry decides by no rule, and the exit by those of the day. One after the other they are asked again.
			var entry, exit strings.Builder
			for line := range strings.Lines(log) {
				if strings.Contains(strings.ReplaceAll(line, `"self":"`, "self="), "self=spiffe://cluster.local/ns/default/sa/exit") {
					exit.WriteString(line)
				} else {
					entry.WriteString(line)
				}
			}
			code, out := replayed(t, dayPolicy, strings.NewReader(exit.String()), "-c", config)
			if want := fmt.Sprintf("%d flows read, %[1]d replayed, 0 would change\n", flows/2); code != exitOK || out != want {
				t.Errorf("the same policy at the exit = %d, %s, want %s", code, out, want)
			}
			if code, out := replayed(t, "rules: []\n", strings.NewReader(entry.String())); code != exitOK || !strings.Contains(out, ", 0 would change\n") {
				t.Errorf("the same policy at the entry = %d, %s", code, out)
			}

			closed := dayPolicy + "- {name: closed, action: deny, to: [{ports: [\"80\"]}], workloads: {names: [orders]}}\n"
			code, out = replayed(t, closed, strings.NewReader(exit.String()), "-c", config)
			want := "\nallow → deny: 1 flow, spiffe://cluster.local/ns/default/sa/entry → 10.0.0.9:80 at mesh\n  by closed (next.yaml:11): a DENY rule takes it; it was by mesh\n  at "
			if code != exitChanged || strings.Count(out, "→ deny") != 1 || strings.Contains(out, "→ allow") || !strings.Contains(out, want) {
				t.Errorf("a policy that closes one = %d, %s, want only %s", code, out, want)
			}

			opened := strings.Replace(dayPolicy, "10.7.0.0/16", "10.6.0.0/16", 1)
			code, out = replayed(t, opened, strings.NewReader(exit.String()), "-c", config)
			if code != exitChanged || strings.Count(out, "deny → allow") != 2 || strings.Contains(out, "→ deny") ||
				!strings.Contains(out, "→ mixed.example:80 at mesh\n") || !strings.Contains(out, "→ inside.example:80 at mesh\n") {
				t.Errorf("a policy that opens two = %d, %s", code, out)
			}

			code, out = replayed(t, dayPolicy, strings.NewReader(exit.String()))
			if code != exitFailure || !strings.Contains(out, "2 flows cannot be replayed: the labels of the workload are not known") {
				t.Errorf("without the configuration = %d, %s", code, out)
			}
		})
	}
}

// The records of a gateway as it is run, with its own configuration.
func TestReplayOfARunningGateway(t *testing.T) {
	m := newMesh(t)
	target := echoServer(t)
	exit := m.runReady("exit", "--hbone", "--log-format", "json")
	entry := m.runReady("entry", "--socks", "--via", exit.address)
	for range 3 {
		nc, err := dialSOCKS(t, entry.address, target)
		if err != nil {
			t.Fatal(err)
		}
		if err := echo(nc, "hello"); err != nil {
			t.Fatal(err)
		}
		_ = nc.Close()
	}
	var log string
	eventually(t, "three records", func() error {
		if log = exit.stderr.String(); strings.Count(log, `"msg":"flow"`) < 3 || !strings.HasSuffix(log, "\n") {
			return errors.New(log)
		}
		return nil
	})
	if code, out := replayed(t, "rules: []\n", strings.NewReader(log)); code != exitOK || out != "3 flows read, 3 replayed, 0 would change\n" {
		t.Errorf("no rules = %d, %s", code, out)
	}
	next := "rules:\n- name: no-entry\n  action: deny\n  from: [{principals: [\"*/sa/entry\"]}]\n"
	code, out := replayed(t, next, strings.NewReader(log), "--json")
	var got struct {
		Flows, Replayed, Changed int
		Changes                  []map[string]any
	}
	if line, _, _ := strings.Cut(out, "\n"); json.Unmarshal([]byte(line), &got) != nil || code != exitChanged || len(got.Changes) != 1 || got.Changed != 3 {
		t.Fatalf("a policy without the entry = %d, %s", code, out)
	}
	for key, want := range map[string]any{
		"peer": "spiffe://cluster.local/ns/default/sa/entry", "gateway": "spiffe://cluster.local/ns/default/sa/exit", "destination": target, "listener": "hbone",
		"was": "allow", "was_rule": "same-namespace", "would_be": "deny", "rule": "no-entry", "flows": 3.0,
	} {
		if got.Changes[0][key] != want {
			t.Errorf("%s = %v, want %v", key, got.Changes[0][key], want)
		}
	}
}

// The port of a service's endpoint is what policy was asked about, and is what is asked about again.
func TestReplayOfServicePorts(t *testing.T) {
	log := flowLine("host", "orders.shop.svc:80", "dst", "10.0.0.9:8080", "unresolved", true, "port", 8080, "rule", "orders")
	const next = "rules:\n- name: orders\n  to: [{ports: [\"8080\"]}]\n"
	if code, out := replayed(t, next, strings.NewReader(log)); code != exitOK || out != "1 flow read, 1 replayed, 0 would change\n" {
		t.Errorf("a rule for the endpoint's port = %d, %s", code, out)
	}
	if code, out := replayed(t, strings.Replace(next, "8080", "80", 1), strings.NewReader(log)); code != exitChanged {
		t.Errorf("a rule for the port of the service = %d, %s", code, out)
	}
	if _, out := replayed(t, next, strings.NewReader(flowLine("port", 65536))); !strings.Contains(out, "0 replayed") {
		t.Errorf("a port that is none: %s", out)
	}
}

// flowLine is a record; more are pairs of keys and values that are added.
func flowLine(more ...any) string {
	var b bytes.Buffer
	args := []any{"flow", "1", "listener", "mesh", "src", "10.0.0.1:50000", "peer", "spiffe://cluster.local/ns/default/sa/web", "dst", "10.0.0.9:80", "decided", "allow",
		"self", "spiffe://cluster.local/ns/default/sa/exit"}
	for i := 0; i < len(more); i += 2 {
		if at := slices.Index(args, more[i]); at >= 0 {
			args[at+1] = more[i+1]
			continue
		}
		args = append(args, more[i], more[i+1])
	}
	slog.New(slog.NewJSONHandler(&b, nil)).Info("flow", args...)
	return b.String()
}

func TestReplayOfOddLogs(t *testing.T) {
	one := flowLine()
	text := "time=2026-01-02T03:04:05.000Z level=INFO msg=flow listener=mesh peer=spiffe://cluster.local/ns/default/sa/web dst=10.0.0.9:80 decided=allow self=spiffe://cluster.local/ns/default/sa/exit\n"
	zipped := func(s string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = io.WriteString(z, s)
		_ = z.Close()
		return b.String()
	}
	unread := func(why error) []string {
		return []string{"2 flows read, 1 replayed, 0 would change\n1 flow cannot be replayed: " + why.Error() + "\n"}
	}
	for _, tt := range []struct {
		name, log string
		code      int
		want      []string
	}{
		{"one", one, exitOK, []string{"1 flow read, 1 replayed, 0 would change\n"}},
		{"one of text", text, exitOK, []string{"1 flow read, 1 replayed, 0 would change\n"}},
		{"both forms", one + text, exitOK, []string{"2 flows read, 2 replayed"}},
		{"compressed", zipped(one + one), exitOK, []string{"2 flows read, 2 replayed"}},
		{"compressed, in parts", zipped(one) + zipped(one), exitOK, []string{"2 flows read, 2 replayed"}},
		{"compressed, and cut", zipped(strings.Repeat(one, 3))[:60], exitFailure, []string{"standard input: cannot be read to its end", "a log cannot be read to its end"}},
		{"nothing", "", exitFailure, []string{"there is no record of a flow"}},
		{"other lines", "panic: x\n{\"level\":\"INFO\",\"msg\":\"reloaded\"}\n\n" + strings.ReplaceAll(text, "msg=flow", `msg="policy in report"`), exitFailure, []string{"there is no record"}},
		{"a line with space between", strings.ReplaceAll(one, `":`, `": `), exitOK, []string{"1 flow read, 1 replayed"}},
		{"a line of another that speaks of a flow", one + `{"msg":"other","err":"\"msg\":\"flow\""}` + "\n", exitOK, []string{"1 flow read, 1 replayed"}},
		{"not the first half", one[40:] + one, exitOK, []string{"1 flow read"}},
		{"half a line", one + one[:len(one)/2], exitFailure, unread(errRecordCut)},
		{"half a line before others", one[:len(one)/2] + "\n" + one, exitFailure, unread(errRecordCut)},
		{"half a line with another in it", one[:len(one)/2] + one + one, exitFailure, unread(errRecordForm)},
		{"text without an end", one + strings.TrimSuffix(text, "\n"), exitFailure, unread(errRecordCut)},
		{"text with another in it", one + strings.TrimSuffix(text, "exit\n") + text, exitFailure, unread(errRecordForm)},
		{"text with another behind it", one + strings.TrimSuffix(text, "\n") + " " + text, exitFailure, unread(errRecordTwice)},
		{"a key that is there twice", one + strings.Replace(one, `"peer"`, `"peer":"spiffe://cluster.local/ns/default/sa/x","peer"`, 1), exitFailure, unread(errRecordTwice)},
		{"and in other letters", one + strings.Replace(one, `"peer"`, `"\u0070eer":"spiffe://cluster.local/ns/default/sa/x","peer"`, 1), exitFailure, unread(errRecordTwice)},
		{"a value with parts", one + strings.Replace(one, `"10.0.0.9:80"`, `["10.0.0.9:80"]`, 1), exitFailure, unread(errRecordForm)},
		{"a control character", one + strings.Replace(one, `mesh`, "me\x01sh", 1), exitFailure, unread(errRecordForm)},
		{"something behind", one + strings.Replace(one, "}\n", "}{\n", 1), exitFailure, unread(errRecordForm)},
		{"too long", one + flowLine("err", strings.Repeat("x", maxRecordBytes)), exitFailure, unread(errRecordLength)},
		{"backslashes without end", one + `{"msg":"flow","err":"` + strings.Repeat(`\`, maxRecordBytes-100) + "\n", exitFailure, unread(errRecordCut)},
		{"of before", one + strings.Replace(one, `"decided":"allow",`, "", 1), exitFailure, unread(errAskOld)},
		{"not asked", one + flowLine("decided", "none"), exitOK, []string{"2 flows read, 1 replayed", "1 flow was refused before policy was asked"}},
		{"a decision that is none", one + flowLine("decided", "maybe"), exitFailure, unread(errAskValue)},
		{"a peer that is none", one + flowLine("peer", "web"), exitFailure, unread(errAskValue)},
		{"a destination that is none", one + flowLine("dst", "10.0.0.9:080"), exitFailure, unread(errAskValue)},
		{"a name as an address", one + flowLine("dst", "shop.example:80"), exitFailure, unread(errAskValue)},
		{"an address as a name", one + flowLine("host", "10.0.0.9:80"), exitFailure, unread(errAskValue)},
		{"a source that is none", one + flowLine("src", "10.0.0:1"), exitFailure, unread(errAskValue)},
		{"an address that is unresolved", one + flowLine("unresolved", true), exitFailure, unread(errAskValue)},
		{"local that is not true", one + flowLine("local", "perhaps"), exitFailure, unread(errAskValue)},
		{"too many addresses", one + flowLine("host", "x.example:80", "unresolved", true, "addrs", "10.0.0.9,+4"), exitFailure, unread(errAskAddrs)},
		{"addresses that are none", one + flowLine("host", "x.example:80", "unresolved", true, "addrs", "10.0.0.9,x"), exitFailure, unread(errAskValue)},
		{"a workload that is none", one + flowLine("workload", "orders"), exitFailure, unread(errAskValue)},
		{"workloads of a name", one + flowLine("host", "x.example:80", "unresolved", true, "workload", "shop/orders"), exitFailure, unread(errAskWorkloads)},
		{"a token, and rules about ports", one + flowLine("token", "issuer/ann"), exitOK, []string{"2 flows read, 2 replayed"}},
		{"a remote address that is none", one + flowLine("remote", "here"), exitFailure, unread(errAskValue)},
		{"a server name", one + flowLine("sni", "x.example", "remote", "192.0.2.1"), exitOK, []string{"2 flows read, 2 replayed"}},
		{"a socket", one + flowLine("dst", "unix:/run/x"), exitOK, []string{"2 flows read, 2 replayed"}},
		{"a listener with odd letters", flowLine("listener", "\x1b[2J", "decided", "deny"), exitChanged, []string{`at "\x1b[2J"`}},
		{"a name that was refused", flowLine("host", "x.example:80", "dst", "", "unresolved", true, "decided", "deny", "rule", "old"), exitChanged,
			[]string{"deny → allow: 1 flow", "→ x.example:80 at mesh\n  by same-namespace: ", "; its addresses, which are not known, would be asked about; it was by old\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := strings.ReplaceAll(tt.log, `"dst":"",`, "")
			code, out := replayed(t, "rules: []\n", strings.NewReader(log))
			if code != tt.code {
				t.Errorf("exit code %d, want %d:\n%s", code, tt.code, out)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in:\n%s", want, out)
				}
			}
		})
	}
}

// endless is a log of many bytes.
type endless struct {
	left  int
	chunk []byte
}

func (e *endless) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	n := min(copy(p, e.chunk), e.left)
	e.left -= n
	return n, nil
}

// A line of a gigabyte, and a gigabyte of garbage, take no memory and are passed over.
func TestReplayOfHugeLogs(t *testing.T) {
	const size = 1 << 30
	for name, log := range map[string]io.Reader{
		"a line":           io.MultiReader(strings.NewReader(`{"msg":"flow","err":"`), &endless{size, bytes.Repeat([]byte("x"), 1<<16)}, strings.NewReader("\n"+flowLine())),
		"another's line":   io.MultiReader(&endless{size, bytes.Repeat([]byte{0}, 1<<16)}, strings.NewReader("\n"+flowLine())),
		"garbage in lines": io.MultiReader(&endless{size / 64, bytes.Repeat([]byte("\xff\x00{\"\n=time="), 1<<12)}, strings.NewReader("\n"+flowLine())),
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplay(newCandidate(rulesOf(t, "rules: []\n"), nil, nil))
			before := totalAlloc()
			r.read("log", log)
			if used := totalAlloc() - before; used > 4<<20 {
				t.Errorf("%d bytes were allocated", used)
			}
			if want := (replaySummary{Flows: 1, Replayed: 1}); r.summary.Replayed != want.Replayed || len(r.summary.Broken) > 0 {
				t.Errorf("summary %+v", r.summary)
			}
		})
	}
}

func totalAlloc() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// lines is a log of n records, made as it is read.
func lines(n int, line func(i int) string) io.Reader {
	r, w := io.Pipe()
	go func() { // ends when the log is read
		b := make([]byte, 0, 1<<16)
		for i := range n {
			if b = append(b, line(i)...); len(b) > 1<<15 || i == n-1 {
				if _, err := w.Write(b); err != nil {
					return
				}
				b = b[:0]
			}
		}
		_ = w.Close()
	}()
	return r
}

// A million peers are all counted, and listed as far as there is room.
func TestReplayOfAMillionPeers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	const peers = 1_000_000
	before, after, _ := strings.Cut(flowLine(), "/sa/web")
	log := lines(peers, func(i int) string { return before + "/sa/web-" + strconv.Itoa(i) + after })
	r := newReplay(newCandidate(rulesOf(t, "rules:\n- {name: closed, action: deny}\n"), nil, nil))
	r.read("log", log)
	s := r.summary
	if s.Changed != peers || s.NotListed != peers-maxChanges || len(r.changes) != maxChanges || len(r.candidate.answers) > maxQuestions {
		t.Errorf("%+v, %d changes and %d answers", s, len(r.changes), len(r.candidate.answers))
	}
	if err := r.verdict(); exitCode(err) != exitChanged {
		t.Errorf("verdict %v", err)
	}
	var out bytes.Buffer
	if err := r.print(&out); err != nil || !strings.Contains(out.String(), fmt.Sprintf("and %d flows more, for which", peers-maxChanges)) {
		t.Errorf("print = %v", err)
	}
}

// Gateways of many namespaces are replayed, each by the policy as it has it, and more than that are not.
func TestReplayOfManyNamespaces(t *testing.T) {
	before, after, _ := strings.Cut(flowLine("peer", "spiffe://cluster.local/ns/n3/sa/web"), "default/sa/exit")
	r := newReplay(newCandidate(rulesOf(t, "rules: []\n"), nil, nil))
	r.read("log", lines(maxNamespaces+2, func(i int) string { return fmt.Sprintf("%sn%d/sa/exit%s", before, i, after) }))
	if r.summary.Replayed != maxNamespaces || r.summary.Changed != maxNamespaces-1 || r.problems[errAskMany.Error()] != 2 {
		t.Errorf("%+v, %v", r.summary, r.problems)
	}
}

// Equal questions are asked once, whatever became of the flow and from whichever port it came.
func TestReplayAsksOnce(t *testing.T) {
	c := newCandidate(rulesOf(t, "rules: []\n"), nil, nil)
	r := newReplay(c)
	r.read("log", strings.NewReader(flowLine()+flowLine("src", "10.0.0.1:50001")+flowLine("reason", "denied", "by", "far", "rule", "x")+flowLine("decided", "deny")))
	if len(c.answers) != 1 || r.summary.Replayed != 4 || r.summary.Changed != 1 {
		t.Errorf("%d answers, %+v", len(c.answers), r.summary)
	}
	r.read("log", strings.NewReader(flowLine("src", "10.0.0.2:50000")+flowLine("open", "routes[0]")+flowLine("listener", "x")))
	if len(c.answers) != 4 {
		t.Errorf("%d answers, want one for each question", len(c.answers))
	}
}

func TestReplayFlags(t *testing.T) {
	if code, out := gatewayCommand(t, nil, "policy", "replay"); code != exitUsage || !strings.Contains(out, "--policy is missing") {
		t.Errorf("without a policy = %d, %s", code, out)
	}
	if code, out := gatewayCommand(t, map[string]string{"p.yaml": "rules: [{action: denny}]"}, "policy", "replay", "--policy", "p.yaml"); code != exitUsage || !strings.Contains(out, "p.yaml:1: ") {
		t.Errorf("with a fault = %d, %s", code, out)
	}
	if code, out := gatewayCommand(t, map[string]string{"p.yaml": "rules: []"}, "policy", "replay", "--policy", "p.yaml", "none.log"); code != exitUsage || !strings.Contains(out, "none.log: cannot be read") {
		t.Errorf("without the log = %d, %s", code, out)
	}
	files := map[string]string{"p.yaml": "rules: [{name: closed, action: deny}]", "gw.yaml": dayConfig + "policy: {files: [p.yaml]}\n", "day.log": flowLine()}
	if code, out := gatewayCommand(t, files, "policy", "replay", "-c", "gw.yaml", "day.log"); code != exitChanged || !strings.Contains(out, "by closed (p.yaml:1)") {
		t.Errorf("with the policies of a configuration = %d, %s", code, out)
	}
}

// FuzzRecord: whatever a line is, it is read as encoding/json reads it, or not at all.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(flowLine()))
	f.Add([]byte(flowLine("host", "a.example:80", "unresolved", true, "err", "x \" y \\ z \u2028")))
	f.Add([]byte("time=2026-01-02T03:04:05Z level=INFO msg=flow err=\"a \\\" b\" dst=10.0.0.9:80 decided=allow\n"))
	f.Add([]byte(`{"msg":"flow","msg":"x"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		d, err := newRecordReader(bytes.NewReader(line))
		if err != nil {
			return
		}
		c := newCandidate(&policies{faults: new(faults)}, nil, nil)
		for {
			r, problem, err := d.next()
			if err != nil {
				return
			}
			if problem != nil {
				continue
			}
			_ = c.ask(r)
			var whole map[string]any
			if line[0] != '{' || bytes.Count(line, []byte("\n")) > 0 {
				continue
			}
			if err := json.Unmarshal(line, &whole); err != nil {
				var syntax *json.SyntaxError
				if errors.As(err, &syntax) {
					t.Fatalf("%q is read, and is no JSON: %v", line, err)
				}
				continue
			}
			if text, isText := whole["dst"].(string); isText && strings.ToValidUTF8(text, "") == text && !strings.Contains(text, "\ufffd") && string(r.get(keyDst)) != text {
				t.Errorf("dst of %q is %q, want %q", line, r.get(keyDst), text)
			}
		}
	})
}

// BenchmarkReplay reads a day of one second: equal questions, as most are.
func BenchmarkReplay(b *testing.B) {
	p := &policies{faults: new(faults)}
	p.read("p.yaml", []byte(dayPolicy))
	for name, line := range map[string]string{
		"json": flowLine("way", "connect", "trace", "b1dbb32bd9c66995cdb7d5be03bb3c7d", "bytes_in", 123456, "bytes_out", 654321, "dur", 123456789),
		"text": "time=2026-01-02T03:04:05.000Z level=INFO msg=flow flow=1 listener=mesh way=connect trace=b1dbb32bd9c66995cdb7d5be03bb3c7d src=10.0.0.1:50000 peer=spiffe://cluster.local/ns/default/sa/web dst=10.0.0.9:80 rule=mesh bytes_in=123456 bytes_out=654321 dur=1.2s decided=allow self=spiffe://cluster.local/ns/default/sa/exit\n",
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(line)))
			b.ReportAllocs()
			r := newReplay(newCandidate(p, nil, nil))
			r.read("log", &endless{b.N * len(line), []byte(strings.Repeat(line, 1))})
			if r.summary.Replayed < b.N-1 {
				b.Fatal(r.summary, r.problems)
			}
		})
	}
}
