package rules

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
)

// allOf are the ports of a gateway that takes flows by a mode.
func allOf(c Config) []Served {
	mode := c.withDefaults(true).Mode
	return []Served{{Port: 15001, TCP: true, UDP: true, Mode: mode}, {Port: 15053, TCP: true, UDP: true, Mode: mode}, {Port: 4242, TCP: true, Mode: mode}}
}

func TestNetnsAlive(t *testing.T) {
	for _, c := range ways {
		t.Run(nameOf(c), func(t *testing.T) {
			isolated(t, func() {
				h, all := Host{Dir: t.TempDir()}, allOf(c)
				before := everything(t)
				a := NewAlive(h)
				quiet(t, a, all, before) // there are no rules
				install(t, c, h)
				wantServing(t, h, nil)
				for range 2 { // again prolongs
					if err := a.Refresh(all); err != nil {
						t.Fatalf("Refresh = %v, want nil", err)
					}
					wantServing(t, h, []uint16{15001, 15053})
				}
				wantExpiry(t, c)
				if c.Backend == BackendNFT {
					c.Exclude = []string{"192.0.2.0/24"}
				}
				install(t, c, h) // flows are captured all the while
				wantServing(t, h, []uint16{15001, 15053})
				if err := a.Withdraw(all[:1]); err != nil {
					t.Errorf("Withdraw = %v, want nil", err)
				}
				wantServing(t, h, []uint16{15053})
				for range 2 {
					if err := a.Withdraw(all); err != nil {
						t.Errorf("Withdraw = %v, want nil", err)
					}
					wantServing(t, h, nil)
				}
				remove(t, h, before)
				quiet(t, a, all, before)

				c.Fail = FailClosed
				install(t, c, h)
				quiet(t, a, all, everything(t))
				remove(t, h, before)
			})
		})
	}
}

// While a gateway says that it serves, over and over, no packet finds that nobody does.
func TestNetnsAliveAllTheWhile(t *testing.T) {
	isolated(t, func() {
		const port = 15001
		run := func(stdin string, args ...string) string {
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Stdin = strings.NewReader(stdin)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %v\n%s", args, err, out)
			}
			return string(out)
		}
		run("", "ip", "link", "set", "lo", "up")
		run(fmt.Sprintf("table inet %s {\nset %s { type inet_proto; flags timeout; }\nchain out {\ntype filter hook output priority 0\n"+
			"udp dport 9 meta l4proto != @%[2]s counter\n}\n}\n", tableName, gateSet(port)), "nft", "-f", "-")
		var f filter
		defer f.close()
		say := func() {
			if err := f.set([]Served{{Port: port, TCP: true, UDP: true}}, true); err != nil {
				t.Fatal(err)
			}
		}
		say()
		c, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var sending sync.WaitGroup
		sending.Go(func() { // ends with stop
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = c.Write([]byte("x")) // nobody listens
				}
			}
		})
		for range 200 {
			say()
		}
		close(stop)
		sending.Wait()
		_ = c.Close()
		if out := run("", "nft", "list", "chain", "inet", tableName, "out"); !strings.Contains(out, "counter packets 0 ") {
			t.Errorf("packets have passed by:\n%s", out)
		}
	})
}

// quiet checks that a does nothing.
func quiet(t *testing.T, a *Alive, all []Served, before string) {
	t.Helper()
	if err := a.Refresh(all); err != nil {
		t.Errorf("Refresh = %v, want nil", err)
	}
	if err := a.Withdraw(all); err != nil {
		t.Errorf("Withdraw = %v, want nil", err)
	}
	if got := everything(t); got != before {
		t.Errorf("there is:\n%s\nwant:\n%s", got, before)
	}
}

func wantServing(t *testing.T, h Host, want []uint16) {
	t.Helper()
	s, err := Look(t.Context(), h)
	if err != nil || !slices.Equal(s.Serving, want) || s.Serves() != (len(want) == 2) {
		t.Fatalf("Look = %+v, %v, want ports %v to be served", s, err, want)
	}
}

// wantExpiry checks that what was said holds for some seconds only.
func wantExpiry(t *testing.T, c Config) {
	t.Helper()
	if c.Backend == BackendNFT {
		text := system(t, "nft", "list", "set", "inet", tableName, gateSet(15001))
		if strings.Count(text, "timeout 5s expires") != 2 || !strings.Contains(text, "tcp") || !strings.Contains(text, "udp") {
			t.Errorf("the set is %s", text)
		}
		return
	}
	for _, six := range []bool{false, true} {
		if text := system(t, "ipset", "list", ipsetName(15001, six)); strings.Count(text, "/1 timeout ") != 2 || !strings.Contains(text, "Header: family inet") {
			t.Errorf("the set is %s", text)
		}
	}
}

// TCP alone is served: UDP passes by.
func TestNetnsAliveOfOneProtocol(t *testing.T) {
	isolated(t, func() {
		h := Host{Dir: t.TempDir()}
		install(t, ways[0], h)
		if err := NewAlive(h).Refresh([]Served{{Port: 15001, TCP: true, Mode: ModeTProxy}}); err != nil {
			t.Fatal(err)
		}
		if text := system(t, "nft", "list", "set", "inet", tableName, gateSet(15001)); !strings.Contains(text, "tcp") || strings.Contains(text, "udp") {
			t.Errorf("the set is %s", text)
		}
		wantServing(t, h, []uint16{15001})
	})
}

// A gateway that takes flows by another mode does not serve, and is told what would.
func TestNetnsAliveOfAnotherMode(t *testing.T) {
	for _, c := range ways {
		t.Run(nameOf(c), func(t *testing.T) {
			isolated(t, func() {
				h, other := Host{Dir: t.TempDir()}, Config{Mode: ModeRedirect}
				if c.Mode == ModeRedirect {
					other.Mode = ModeTProxy
				}
				install(t, c, h)
				a := NewAlive(h)
				if err := a.Refresh(allOf(other)); err == nil || !strings.Contains(err.Error(), "--mode "+other.Mode) {
					t.Errorf("Refresh = %v, want the mode to give", err)
				}
				wantServing(t, h, nil)
				if err := a.Withdraw(allOf(other)); err != nil {
					t.Errorf("Withdraw = %v, want nil", err)
				}
			})
		})
	}
}

// The rules are taken out by somebody else: whoever refreshes does not complain, and Look tells.
func TestNetnsAliveWithoutItsSets(t *testing.T) {
	for _, c := range ways {
		t.Run(nameOf(c), func(t *testing.T) {
			isolated(t, func() {
				h := Host{Dir: t.TempDir()}
				install(t, c, h)
				system(t, "nft", "flush", "ruleset")
				if c.Backend == BackendIPTables {
					system(t, "ipset", "destroy")
				}
				a := NewAlive(h)
				quiet(t, a, allOf(c), everything(t))
				if s, err := Look(t.Context(), h); err != nil || !s.Installed || len(s.Missing) == 0 || s.Serves() {
					t.Errorf("Look = %+v, %v, want it to name what is missing", s, err)
				}
				install(t, c, h)
				if err := Remove(t.Context(), h); err != nil {
					t.Errorf("Remove = %v, want nil", err)
				}
			})
		})
	}
}
