package main_test

import (
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// configured starts a gateway of a file, in which $ADDR becomes the address of its one listener, and who it is and
// its admin address are added.
func (m *mesh) configured(t *testing.T, name, text string) *gateway {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ln, admin := loopback(t), loopback(t)
	g := &gateway{addr: ln.Addr().String(), admin: admin.Addr().String()}
	text = "identity: {cert: " + name + ".pem, key: " + name + ".key, roots: root.pem}\nadmin: {address: \"" + g.admin + "\"}\n" + text
	file := m.write(t, name+".yaml", []byte(strings.ReplaceAll(text, "$ADDR", g.addr)))
	cmd := exec.Command(self, "run", "--state", t.TempDir(), "-c", file)
	cmd.Env = append(os.Environ(), asGateway+"=1", "LISTEN_FDS=2")
	for _, l := range []*net.TCPListener{ln, admin} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	g.process = start(t, cmd)
	g.ready(t)
	return g
}

// nameServer answers every question for an address of IPv4 with 127.0.0.1, and others with nothing. It counts them.
func nameServer(t *testing.T) (addr string, asked *atomic.Int64) {
	t.Helper()
	return scriptedNames(t, func(name string, kind uint16) []string {
		if kind != dns.TypeA {
			return nil
		}
		return []string{name + " 60 IN A 127.0.0.1"}
	})
}

// scriptedNames is a name server that answers with the records that says returns, in their text form. It counts questions.
func scriptedNames(t *testing.T, says func(name string, kind uint16) []string) (addr string, asked *atomic.Int64) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked = new(atomic.Int64)
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable = true
		for _, text := range says(q.Question[0].Name, q.Question[0].Qtype) {
			rr, err := dns.NewRR(text)
			if err != nil {
				t.Errorf("%s: %v", text, err)
			}
			m.Answer = append(m.Answer, rr)
		}
		if len(m.Answer) == 0 {
			soa, err := dns.NewRR("example. 60 IN SOA ns.example. root.example. 1 2 3 4 60")
			if err != nil {
				t.Error(err)
			}
			m.Ns = []dns.RR{soa}
		}
		if err := w.WriteMsg(m); err != nil {
			t.Errorf("the name server cannot answer: %v", err)
		}
	})}
	ended := make(chan struct{})
	go func() { // ends with Shutdown; the cleanup waits for it
		_ = srv.ActivateAndServe()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = srv.Shutdown()
		<-ended
	})
	return pc.LocalAddr().String(), asked
}

// Names are asked for once as long as the answer lasts, at the resolver of the file.
func TestNamesAreResolvedOnce(t *testing.T) {
	m := newMesh(t)
	resolver, asked := nameServer(t)
	server := serve(t, func(nc *net.TCPConn) { _, _ = nc.Write([]byte("hello")) })
	_, port, _ := net.SplitHostPort(server)
	g := m.configured(t, "client", `
resolver: {upstream: ["`+resolver+`"]}
listeners: [{name: apps, kind: forward, address: "$ADDR", to: "www.example:`+port+`"}]
routes: [{hosts: [www.example]}]
policy: {egress: ["127.0.0.0/8"]}
`)
	for range 3 {
		nc, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := nc.Read(b); err != nil || string(b) != "hello" {
			t.Errorf("read %q, %v, want hello", b, err)
		}
		_ = nc.Close()
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("the resolver was asked %d times, want 2: for both families, once", n)
	}
}

// A name that is led to another address than the one that was judged reaches neither: 127.0.0.5 is allowed, and 127.0.0.1 is
// guarded, where a server waits that must not hear of it.
func TestRebinding(t *testing.T) {
	const open, guarded = "127.0.0.5", "127.0.0.1"
	m := newMesh(t)
	var reached atomic.Int64
	_, port, _ := net.SplitHostPort(serve(t, func(*net.TCPConn) { reached.Add(1) }))
	allowed, err := net.Listen("tcp", net.JoinHostPort(open, port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = allowed.Close() })
	go func() { // ends with the listener
		for {
			nc, err := allowed.Accept()
			if err != nil {
				return
			}
			_, _ = nc.Write([]byte("allowed"))
			_ = nc.Close()
		}
	}()
	// inTurn gives another address to each question for IPv4.
	inTurn := func(addrs ...string) func(string, uint16) []string {
		var n atomic.Int64
		return func(name string, kind uint16) []string {
			if kind != dns.TypeA {
				return nil
			}
			return []string{name + " 0 IN A " + addrs[int(n.Add(1)-1)%len(addrs)]}
		}
	}
	always := func(of uint16, records ...string) func(string, uint16) []string {
		return func(_ string, kind uint16) []string {
			if kind != of {
				return nil
			}
			return records
		}
	}
	for _, tt := range []struct {
		name string
		says func(string, uint16) []string
		want []string // what the flows read, one after the other
	}{
		{"allowed first and denied later", inTurn(open, guarded), []string{"allowed", ""}},
		{"denied first and allowed later", inTurn(guarded, open), []string{"", "allowed"}},
		{"both at once", always(dns.TypeA, "www.example. 0 IN A "+open, "www.example. 0 IN A "+guarded), []string{"", ""}},
		{"one in each family", func(name string, kind uint16) []string {
			if kind == dns.TypeA {
				return []string{name + " 0 IN A " + open}
			}
			return []string{name + " 0 IN AAAA ::1"}
		}, []string{"", ""}},
		{"by an alias", always(dns.TypeA, "www.example. 0 IN CNAME localhost.", "localhost. 0 IN A "+guarded), []string{"", ""}},
		{"in the form of IPv6", always(dns.TypeAAAA, "www.example. 0 IN AAAA ::ffff:"+guarded), []string{"", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resolver, _ := scriptedNames(t, tt.says)
			g := m.configured(t, "client", `
resolver: {upstream: ["`+resolver+`"], minTTL: -1s}
listeners: [{name: apps, kind: forward, address: "$ADDR", to: "www.example:`+port+`"}]
routes: [{hosts: ["*"]}]
policy: {egress: ["`+open+`"]}
`)
			for i, want := range tt.want {
				nc, err := net.Dial("tcp", g.addr)
				if err != nil {
					t.Fatal(err)
				}
				got, _ := io.ReadAll(nc) // a refusal is a reset
				if string(got) != want {
					t.Errorf("flow %d reads %q, want %q", i+1, got, want)
				}
				_ = nc.Close()
			}
			if n := reached.Load(); n != 0 {
				t.Errorf("the guarded server was reached %d times", n)
			}
		})
	}
}
