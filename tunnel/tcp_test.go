package tunnel_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// tcpPair is an entry with a forwarded port and an exit, on loopback sockets.
type tcpPair struct {
	entry, exit *tunnel.Gateway
	dest        *net.TCPListener // where the forwarded port leads
}

func newTCPPair(t testing.TB) *tcpPair { return newTCPPairWith(t, func(*tunnel.Env) {}) }

// newTCPPairWith is newTCPPair of gateways whose environments mend has changed.
func newTCPPairWith(t testing.TB, mend func(*tunnel.Env)) *tcpPair {
	t.Helper()
	dest, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dest.Close() })
	ca := tunneltest.NewCA(t)
	start := func(name string, cfg *tunnel.Config) *tunnel.Gateway {
		id := ca.Issue(t, "cluster.local", "default", name)
		env := tunnel.Env{Self: id.Self, ServerTLS: id.ServerTLS, ClientTLS: id.ClientTLS, Log: slog.New(slog.DiscardHandler)}
		mend(&env)
		g, err := tunnel.New(cfg, env)
		if err == nil {
			err = g.Start(context.Background())
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.Close)
		return g
	}
	p := &tcpPair{dest: dest.(*net.TCPListener)}
	p.exit = start("exit", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "127.0.0.1:0"}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{"local"}}},
	})
	p.entry = start("entry", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "plain", Kind: tunnel.KindForward, Address: "127.0.0.1:0", To: dest.Addr().String()}},
		Routes:    []tunnel.RouteConfig{{Via: []string{p.exit.Addr("mesh").String()}}},
	})
	return p
}

// open dials the forwarded port and returns both ends of the flow.
func (p *tcpPair) open(t testing.TB) (app, server *net.TCPConn) {
	t.Helper()
	nc, err := net.Dial("tcp", p.entry.Addr("plain").String())
	if err != nil {
		t.Fatal(err)
	}
	p.dest.SetDeadline(time.Now().Add(20 * time.Second))
	server, err = p.dest.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	app = nc.(*net.TCPConn)
	for _, c := range []*net.TCPConn{app, server} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { c.Close() })
	}
	return app, server
}

func TestTCPReset(t *testing.T) {
	for _, tt := range []struct {
		name string
		ends func(app, server *net.TCPConn) (from, to *net.TCPConn)
	}{
		{"by the app", func(a, s *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return a, s }},
		{"by the server", func(a, s *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return s, a }},
	} {
		for _, when := range []string{"while idle", "while the other side sends", "after the other side's end", "with bytes before"} {
			t.Run(tt.name+", "+when, func(t *testing.T) {
				p := newTCPPair(t)
				from, to := tt.ends(p.open(t))
				var wg sync.WaitGroup
				defer wg.Wait()
				switch when {
				case "while the other side sends":
					wg.Go(func() { // ends with the connection
						for {
							if _, err := to.Write(make([]byte, 10_000)); err != nil {
								return
							}
						}
					})
					io.ReadFull(from, make([]byte, 100_000))
				case "after the other side's end":
					to.CloseWrite()
					io.ReadAll(from)
				case "with bytes before":
					from.Write([]byte("before"))
					io.ReadFull(to, make([]byte, 6))
				}
				from.SetLinger(0)
				from.Close()
				// The other side's own write may take the error, so both are looked at.
				_, err := io.Copy(io.Discard, to)
				if when != "while the other side sends" && !errors.Is(err, syscall.ECONNRESET) || err != nil && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the other side read %v, want ECONNRESET", err)
				}
			})
		}
	}
}

// A destination that never stops sending is not drawn from for the sake of an app that has gone: what it
// gets rid of after that fits into the sockets and windows on the way.
func TestTCPAppLeavesADownload(t *testing.T) {
	const onTheWay = 64 << 20
	p := newTCPPair(t)
	app, server := p.open(t)
	app.CloseWrite()
	io.ReadAll(server)
	var sent atomic.Int64
	over := make(chan error, 1)
	go func() { // ends with the connection
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Write(buf)
			if sent.Add(int64(n)); err != nil {
				over <- err
				return
			}
		}
	}()
	io.ReadFull(app, make([]byte, 1_000_000))
	before := sent.Load()
	app.Close()
	if err := <-over; !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the server's writes ended with %v, want a reset", err)
	}
	if drawn := sent.Load() - before; drawn > onTheWay {
		t.Errorf("%d MiB were drawn from the server after the app had gone, want at most %d", drawn>>20, onTheWay>>20)
	}
}

// Whichever side ends first, all bytes arrive. SOAK=1 makes it 20,000 transfers.
func TestTCPHalfClose(t *testing.T) {
	p := newTCPPair(t)
	transfers := 250
	if os.Getenv("SOAK") != "" {
		transfers = 10_000
	}
	go func() { // ends when the destination's listener is closed, by the clean-up
		for {
			c, err := p.dest.Accept()
			if err != nil {
				return
			}
			go serveTransfer(c.(*net.TCPConn)) // ends with its transfer, whose app waits for it
		}
	}()
	for _, kind := range []byte("sc") {
		t.Run(map[byte]string{'s': "server first", 'c': "client first"}[kind], func(t *testing.T) {
			var wg sync.WaitGroup
			slots := make(chan struct{}, 16)
			for i := range transfers {
				slots <- struct{}{}
				wg.Go(func() {
					defer func() { <-slots }()
					rnd := rand.New(rand.NewPCG(uint64(i), uint64(kind)))
					if err := transfer(p.entry.Addr("plain").String(), kind, rnd.IntN(200_000)); err != nil {
						t.Errorf("transfer %d: %v", i, err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// transfer asks for one exchange: 's' the server sends first and ends, 'c' the client does.
func transfer(addr string, kind byte, n int) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	c := nc.(*net.TCPConn)
	body := bytes.Repeat([]byte{byte(n)}, n)
	head := strconv.AppendInt([]byte{kind}, int64(n), 10)
	head = append(head, bytes.Repeat([]byte(" "), 16-len(head))...)
	if kind == 'c' {
		head = append(head, body...)
	}
	if _, err := c.Write(head); err != nil {
		return err
	}
	if kind == 'c' {
		c.CloseWrite()
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	if kind == 's' {
		body = append(body, sum[:]...)
		if !bytes.Equal(got, body) {
			return errors.New("got " + strconv.Itoa(len(got)) + " of " + strconv.Itoa(len(body)) + " bytes")
		}
		return nil
	}
	if !bytes.Equal(got, sum[:]) {
		return errors.New("the server did not get what was sent")
	}
	return nil
}

func serveTransfer(c *net.TCPConn) {
	defer c.Close()
	head := make([]byte, 16)
	if _, err := io.ReadFull(c, head); err != nil {
		return
	}
	n, _ := strconv.Atoi(string(bytes.TrimSpace(head[1:])))
	if head[0] == 's' {
		body := bytes.Repeat([]byte{byte(n)}, n)
		sum := sha256.Sum256(body)
		c.Write(append(body, sum[:]...))
		c.CloseWrite()
		io.Copy(io.Discard, c) // the client's end
		return
	}
	body, _ := io.ReadAll(c)
	sum := sha256.Sum256(body)
	c.Write(sum[:])
}

// A server that answers and closes while the client still sends: the answer arrives as a whole.
func TestTCPAnswerBeforeRequestIsComplete(t *testing.T) {
	p := newTCPPair(t)
	for range 20 {
		app, server := p.open(t)
		answer := bytes.Repeat([]byte("a"), 2<<20)
		var wg sync.WaitGroup
		wg.Go(func() { // ends when the flow takes nothing more
			for {
				if _, err := app.Write(make([]byte, 10_000)); err != nil {
					return
				}
			}
		})
		arrived := make(chan struct{})
		wg.Go(func() { // ends when the answer has arrived
			io.ReadFull(server, make([]byte, 1000))
			server.Write(answer)
			server.CloseWrite()
			<-arrived
			server.Close() // with unread bytes: what comes is answered with RST
		})
		got, err := io.ReadAll(app)
		close(arrived)
		if err != nil || len(got) != len(answer) {
			t.Fatalf("app read %d bytes, %v, want %d and the end", len(got), err, len(answer))
		}
		app.Close()
		wg.Wait()
	}
}
