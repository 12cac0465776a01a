package tunnel_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// recordOf returns the keys and values of the one record in log that has part in it.
func recordOf(t *testing.T, log *tunneltest.Log, part string) map[string]string {
	t.Helper()
	var found map[string]string
	for line := range strings.Lines(log.String()) {
		if !strings.Contains(line, "msg=flow") || !strings.Contains(line, part) {
			continue
		}
		if found != nil {
			t.Fatalf("several records have %s: %s", part, log)
		}
		found = make(map[string]string)
		for _, m := range regexp.MustCompile(`(\S+)=("[^"]*"|\S+)`).FindAllStringSubmatch(line, -1) {
			found[m[1]] = m[2]
		}
	}
	if found == nil {
		t.Fatalf("no record has %s: %s", part, log)
	}
	return found
}

// One record says where the time of a flow went, at each hop, with both identities; the metrics have the same.
func TestRecordTellsWhereTheTimeWent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ms = time.Millisecond
		slowly := func(e *tunnel.Env, takes time.Duration) {
			dial := e.Dial
			e.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
				time.Sleep(takes)
				return dial(ctx, addr)
			}
		}
		p := tunneltest.NewPair(t, tunneltest.Options{
			EntryEnv: func(e *tunnel.Env) { slowly(e, 30*ms) },
			ExitEnv: func(e *tunnel.Env) {
				slowly(e, 200*ms)
				e.Resolve = func(context.Context, string) ([]netip.Addr, error) {
					time.Sleep(50 * ms)
					return []netip.Addr{netip.MustParseAddr("10.0.0.2")}, nil
				}
				handshake := e.ServerTLS
				e.ServerTLS = func(listener string) *tls.Config {
					time.Sleep(40 * ms)
					return handshake(listener)
				}
			},
			Exit: func(c *tunnel.Config) { c.Routes = []tunnel.RouteConfig{{Hosts: []string{"svc.example"}}} },
		})
		tunneltest.Serve(t, p.Net, "10.0.0.2:80", func(c *memnet.Conn) {
			defer c.Close()
			time.Sleep(time.Second)
			_, _ = io.WriteString(c, "hello")
		})
		fetch := func() {
			conn, err := p.Dial(testContext(t), "svc.example:80")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got, err := io.ReadAll(conn); string(got) != "hello" {
				t.Fatalf("read %q, %v", got, err)
			}
		}
		fetch()
		synctest.Wait()
		const id = "spiffe://cluster.local/ns/default/sa/"
		for _, tt := range []struct {
			at   string
			want map[string]string
		}{
			{"listener=apps", map[string]string{"peer": id + "entry", "hop": "exit", "hop_id": id + "exit", "dial": "30ms", "tls": "40ms",
				"answer": "250ms", "open": "320ms", "first_byte": "1s", "queue": "", "dns": "", "bytes_out": "5"}},
			{"listener=mesh", map[string]string{"peer": id + "entry", "hop_id": "", "dns": "50ms", "dial": "200ms", "open": "250ms",
				"first_byte": "1s", "tls": "", "answer": "", "dst": "10.0.0.2:80"}},
		} {
			r := recordOf(t, p.Log, tt.at)
			for key, want := range tt.want {
				if r[key] != want {
					t.Errorf("%s: %s is %q, want %q, in %v", tt.at, key, r[key], want, r)
				}
			}
		}
		fetch() // on the connection that stands
		p.Entry.Close()
		p.Exit.Close()
		for phase, want := range map[string]tunnel.Histogram{
			"dial": {Count: 1, Sum: 30 * ms}, "tls": {Count: 1, Sum: 40 * ms}, "answer": {Count: 2, Sum: 500 * ms}, "open": {Count: 2, Sum: 570 * ms},
			"first_byte": {Count: 2, Sum: 2 * time.Second}, "dns": {},
		} {
			if got := p.Entry.Stats().Phases[phase]; got.Count != want.Count || got.Sum != want.Sum {
				t.Errorf("the entry has counted %d times of %s, %v in sum, want %d, %v", got.Count, phase, got.Sum, want.Count, want.Sum)
			}
		}
	})
}

// What a hop refuses names the hop, by what its certificate proves.
func TestRecordOfARefusalNamesTheHop(t *testing.T) {
	c := newChained(t, nil, nil)
	if _, err := tunneltest.Dial(testContext(t), c.entry, "apps", "10.0.0.3:81"); err == nil {
		t.Fatal("dial of a port where nobody listens succeeded")
	}
	c.entry.Close()
	r := recordOf(t, c.logs["entry"], "reason=refused")
	if r["hop"] != "a,b" || r["hop_id"] != "spiffe://cluster.local/ns/default/sa/b" || r["by"] != "b" || r["answer"] == "" || r["open"] != "" {
		t.Errorf("record %v, want the chain, who has refused at its end, and how long the answer took", r)
	}
}
