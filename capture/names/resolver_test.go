package names

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestMain checks that no test left a goroutine.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	if code == 0 && flag.Lookup("test.fuzz").Value.String() == "" {
		code = leaked(before)
	}
	os.Exit(code)
}

// leaked waits until there are no more goroutines than before, as those of ended tests may still be on their way out.
func leaked(before int) int {
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			fmt.Fprintf(os.Stderr, "goroutines left: %s\n", stacks[:runtime.Stack(stacks, true)])
			return 1
		}
	}
	return 0
}

// nobody is the resolver that an app has asked who means this server.
var nobody netip.AddrPort

// script is what a resolver answers to a question that came over a network; nothing: it is silent.
type script func(network string, q *dns.Msg) []*dns.Msg

// resolver is one for tests, on sockets or in memory.
type resolver struct {
	addr  string // its address, host:port
	says  script
	asked atomic.Int64
	tcp   atomic.Int64

	group sync.WaitGroup // of connections in memory
}

func (r *resolver) answers(network string, q *dns.Msg) []*dns.Msg {
	r.asked.Add(1)
	if network == "tcp" {
		r.tcp.Add(1)
	}
	return r.says(network, q)
}

// newResolver starts a resolver on a loopback port, for UDP and TCP.
func newResolver(t testing.TB, says script) *resolver {
	t.Helper()
	pc, ln := samePort(t)
	r := &resolver{addr: pc.LocalAddr().String(), says: says}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		for _, m := range r.answers(w.RemoteAddr().Network(), q) {
			if err := w.WriteMsg(m); err != nil {
				t.Errorf("resolver: %v", err)
			}
		}
	})
	for _, server := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: ln, Handler: handler}} {
		started, ended := make(chan struct{}), make(chan error, 1)
		server.NotifyStartedFunc = func() { close(started) }
		// Ends with the test, which waits for it.
		go func() { ended <- server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			if err := server.Shutdown(); err != nil {
				t.Errorf("Shutdown = %v, want nil", err)
			}
			<-ended
		})
	}
	return r
}

// samePort opens a port for UDP and TCP.
func samePort(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	var last error
	for range 20 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", pc.LocalAddr().String())
		if err == nil {
			return pc, ln
		}
		last = err
		pc.Close()
	}
	t.Fatal(last)
	return nil, nil
}

// dialLoopback connects to resolvers on sockets.
func dialLoopback(ctx context.Context, network, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, address)
}

// memory is a Dial to resolvers that are not on sockets, by their address. It is for synthetic time.
type memory map[string]*resolver

// newMemory makes a resolver of each script, called r1:53, r2:53 and so on.
func newMemory(t testing.TB, says ...script) memory {
	m := make(memory)
	for i, one := range says {
		r := &resolver{addr: fmt.Sprintf("r%d:53", i+1), says: one}
		m[r.addr] = r
		t.Cleanup(r.group.Wait)
	}
	return m
}

func (m memory) addrs() (list []string) {
	for addr := range m {
		list = append(list, addr)
	}
	slices.Sort(list)
	return list
}

// dial connects by a pipe, on which each Write is one Read of at least its length, as it is with datagrams.
func (m memory) dial(_ context.Context, network, address string) (net.Conn, error) {
	r := m[address]
	if r == nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("nothing at %s", address)}
	}
	ours, theirs := net.Pipe()
	r.group.Go(func() { // ends when ours is closed; the test waits for it
		defer theirs.Close()
		r.serve(network, theirs)
	})
	return ours, nil
}

func (r *resolver) serve(network string, nc net.Conn) {
	conn := &dns.Conn{Conn: nc}
	buf := make([]byte, dns.MaxMsgSize)
	read, write := nc.Read, nc.Write
	if network == "tcp" {
		read, write = conn.Read, conn.Write
	}
	for {
		n, err := read(buf)
		if err != nil {
			return
		}
		q := new(dns.Msg)
		if err := q.Unpack(buf[:n]); err != nil {
			panic("the server asks what does not unpack: " + err.Error())
		}
		for _, m := range r.answers(network, q) {
			b, err := m.Pack()
			if err != nil {
				panic("a script's answer does not pack: " + err.Error())
			}
			if _, err := write(b); err != nil {
				return
			}
		}
	}
}

// silent never answers.
func silent(string, *dns.Msg) []*dns.Msg { return nil }

// says answers every question with the same code.
func says(code int) script {
	return func(_ string, q *dns.Msg) []*dns.Msg { return []*dns.Msg{failure(q, code)} }
}

// replyTo begins an answer.
func replyTo(q *dns.Msg, records ...string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	m.Answer = parse(records...)
	return m
}

func parse(records ...string) (list []dns.RR) {
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		list = append(list, rr)
	}
	return list
}

// fixed answers every question with the same records.
func fixed(records ...string) script {
	return func(_ string, q *dns.Msg) []*dns.Msg { return []*dns.Msg{replyTo(q, records...)} }
}

// zoneOf answers with those of the records that a resolver would find, and a SOA among them where there are none.
func zoneOf(records ...string) script {
	all := parse(records...)
	return func(_ string, q *dns.Msg) []*dns.Msg {
		m := replyTo(q)
		name, exists := q.Question[0].Name, false
		for next := name; next != ""; {
			name, next = next, ""
			for _, rr := range all {
				h := rr.Header()
				if h.Name != name {
					continue
				}
				exists = true
				if alias, ok := rr.(*dns.CNAME); ok {
					next = alias.Target
				} else if h.Rrtype != q.Question[0].Qtype {
					continue
				}
				m.Answer = append(m.Answer, rr)
			}
		}
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		if !exists || len(m.Answer) == 0 {
			for _, rr := range all {
				if rr.Header().Rrtype == dns.TypeSOA {
					m.Ns = append(m.Ns, rr)
				}
			}
		}
		return []*dns.Msg{m}
	}
}

func newServer(t testing.TB, cfg *Config, dial Dial) *Server {
	t.Helper()
	s, err := New(cfg, dial, nil)
	if err != nil {
		t.Fatalf("New = %v, want nil", err)
	}
	return s
}

// question is one about a name, with the ID 4711.
func question(name string, kind uint16) *dns.Msg {
	q := new(dns.Msg)
	q.SetQuestion(name, kind)
	q.Id = 4711
	return q
}

func packed(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatalf("Pack = %v, want nil", err)
	}
	return b
}

// asks sends a question as an app does over UDP, and checks what is true of each answer.
func asks(t testing.TB, s *Server, q *dns.Msg) *dns.Msg {
	t.Helper()
	return answerTo(t, q, s.answer(t.Context(), packed(t, q), nobody, plainSize))
}

func answerTo(t testing.TB, q *dns.Msg, b []byte) *dns.Msg {
	t.Helper()
	if b == nil {
		t.Fatalf("no answer to %v", q.Question)
	}
	m, err := unpack(b)
	if err != nil {
		t.Fatalf("the answer to %v does not unpack: %v", q.Question, err)
	}
	if m.Id != q.Id || !m.Response || !m.RecursionAvailable || m.RecursionDesired != q.RecursionDesired {
		t.Errorf("head of the answer = %+v, want that of an answer to %+v", m.MsgHdr, q.MsgHdr)
	}
	if len(q.Question) == 1 && !slices.Equal(m.Question, q.Question) {
		t.Errorf("question of the answer = %v, want %v", m.Question, q.Question)
	}
	return m
}

// shown is an answer in short: its code, records of the answer, and ; with those that say what is not there.
func shown(m *dns.Msg) string {
	words := []string{dns.RcodeToString[m.Rcode]}
	section := func(list []dns.RR) {
		for _, rr := range list {
			words = append(words, strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	section(m.Answer)
	if len(m.Ns) > 0 {
		words = append(words, ";")
		section(m.Ns)
	}
	return strings.Join(words, " | ")
}

func wantShown(t testing.TB, m *dns.Msg, want string) {
	t.Helper()
	if got := shown(m); got != want {
		t.Errorf("answer = %s\nwant     %s", got, want)
	}
}

// counts are the counters that are not 0.
func counts(s *Server) string {
	var words []string
	for _, one := range []struct {
		name  string
		value *atomic.Int64
	}{
		{"questions", &s.stats.Questions}, {"virtual", &s.stats.Virtual}, {"cached", &s.stats.Cached},
		{"failed", &s.stats.Failed}, {"refused", &s.stats.Refused}, {"dropped", &s.stats.Dropped},
	} {
		if n := one.value.Load(); n != 0 {
			words = append(words, fmt.Sprintf("%s=%d", one.name, n))
		}
	}
	return strings.Join(words, " ")
}

func wantCounts(t testing.TB, s *Server, want string) {
	t.Helper()
	if got := counts(s); got != want {
		t.Errorf("Stats = %s, want %s", got, want)
	}
}
