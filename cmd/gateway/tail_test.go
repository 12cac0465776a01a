package main_test

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// tailBytes is more than every buffer on the way holds together with the windows.
const tailBytes = 16 << 20

// TestTail sends 16 MiB after the other direction has ended, to an end that reads slowly, on every way in.
func TestTail(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	var list []*transfer
	for i, kind := range []byte{serverEnds, serverCloses, clientEnds, bothEnd, serverEnds, serverCloses, clientEnds, bothEnd} {
		tr := &transfer{kind: kind, id: uint32(i), down: tailBytes, up: tailBytes, slow: true, served: make(chan error, 1)}
		switch kind {
		case serverEnds: // the client's is the tail
			tr.down = 1000
		case serverCloses:
			tr.up = 0
		case clientEnds: // the server's
			tr.up = 1000
		}
		list = append(list, tr)
	}
	addr := serveTransfers(t, list)
	m := newMesh(t)
	exit := m.exit(t)
	forward, socks := m.forward(t, exit.addr, addr), m.socks(t, exit.addr)
	t.Run("ways", func(t *testing.T) {
		for i, tr := range list {
			way, connect := "forward ", func(t *testing.T) *net.TCPConn { return dial(t, forward.addr) }
			if i%2 == 1 == (i < len(list)/2) { // each kind once on each way
				way, connect = "socks ", func(t *testing.T) *net.TCPConn { return dialVia(t, socks.addr, addr) }
			}
			t.Run(way+string(tr.kind), func(t *testing.T) {
				t.Parallel()
				if err := tr.runOn(connect(t)); err != nil {
					t.Error(err)
				}
			})
		}
	})
	for _, g := range []*gateway{exit, forward, socks} {
		g.idle(t)
		if strings.Contains(g.out.String(), " reason=") {
			t.Error("a flow is recorded as cut")
		}
	}
}

// dialVia connects to target through the SOCKS5 listener at addr.
func dialVia(t *testing.T, addr, target string) *net.TCPConn {
	t.Helper()
	nc, to := dial(t, addr), netip.MustParseAddrPort(target)
	ip := to.Addr().As4()
	reply := make([]byte, 2+10)
	_, err := nc.Write(append(append([]byte{5, 1, 0, 5, 1, 0, 1}, ip[:]...), byte(to.Port()>>8), byte(to.Port())))
	if _, err2 := io.ReadFull(nc, reply); errors.Join(err, err2) != nil || reply[3] != 0 {
		t.Fatalf("SOCKS replies % x, %v, %v", reply, err, err2)
	}
	return nc
}

// TestTailConnectionClose fetches 16 MiB from an HTTP/1.1 server that says Connection: close, and closes. The client
// reads slowly and does not end its own side.
func TestTailConnectionClose(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	content := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), tailBytes) }
	want := sha256.New()
	if _, err := io.Copy(want, content()); err != nil {
		t.Fatal(err)
	}
	for name, length := range map[string]string{"with a length": "16777216", "to the end": ""} {
		t.Run(name, func(t *testing.T) {
			ln := loopback(t)
			server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Connection", "close")
				w.Header().Set("Content-Length", length)
				if length == "" {
					w.Header().Del("Content-Length")
				}
				_, _ = io.Copy(w, content()) // the client sees what is missing
			})}
			var serving sync.WaitGroup
			serving.Go(func() { _ = server.Serve(ln) }) // ends with server.Close; Wait in the cleanup
			t.Cleanup(func() {
				_ = server.Close()
				serving.Wait()
			})
			p := newPair(t, ln.Addr().String())
			nc := dial(t, p.entry.addr)
			// HTTP/1.0 gets no chunks: the body lasts to the end of the connection.
			version := map[bool]string{true: "1.0", false: "1.1"}[length == ""]
			if _, err := io.WriteString(nc, "GET / HTTP/"+version+"\r\nHost: server\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(&slowReader{nc}), nil)
			if err != nil {
				t.Fatal(err)
			}
			got := sha256.New()
			if n, err := io.Copy(got, resp.Body); n != tailBytes || err != nil || string(got.Sum(nil)) != string(want.Sum(nil)) {
				t.Errorf("%d bytes, %v, want the %d that were sent", n, err, tailBytes)
			}
			if err := nc.Close(); err != nil {
				t.Error(err)
			}
			p.idle(t)
		})
	}
}

// TestKilledHop kills a gateway in a chain of three while it passes bytes on: both ends see a reset.
func TestKilledHop(t *testing.T) {
	for _, dies := range []string{"first", "second"} {
		t.Run(dies, func(t *testing.T) {
			ln := loopback(t)
			m := newMesh(t)
			second := m.exit(t)
			first := m.exit(t, "--egress", second.addr)
			entry := m.forward(t, first.addr+","+second.addr, ln.Addr().String())
			p := pair{entry: entry, exit: second}
			silent, farSilent := p.connect(t, ln)
			client, server := p.connect(t, ln)
			var sending sync.WaitGroup
			sending.Go(func() { _, _ = io.Copy(server, rand.NewChaCha8([32]byte{})) }) // ends when the flow is cut; Wait below
			if _, err := io.ReadFull(client, make([]byte, 1<<20)); err != nil {
				t.Fatal(err)
			}
			if dies == "first" {
				first.kill()
			} else {
				second.kill()
			}
			if err := wantReset(silent); err != nil {
				t.Errorf("a flow without bytes: %v", err)
			}
			if err := wantReset(client); err != nil {
				t.Errorf("an end that receives: %v", err)
			}
			if dies == "first" {
				if err := wantReset(farSilent); err != nil {
					t.Errorf("the far end of a flow without bytes: %v", err)
				}
			}
			_ = server.Close()
			sending.Wait()
		})
	}
}

// TestKilledUpstream kills a server process while it sends and has not read all that it got: the client sees a reset.
// (One that had read all is ended by the system with a FIN, which nobody can tell from its own.)
func TestKilledUpstream(t *testing.T) {
	ln := loopback(t)
	m := newMesh(t)
	server := m.gateway(t, "server", "--forward", "$ADDR="+ln.Addr().String())
	exit := m.exit(t)
	p := pair{entry: m.forward(t, exit.addr, server.addr), exit: exit}
	client, source := p.connect(t, ln)
	var sending sync.WaitGroup
	sending.Go(func() { _, _ = io.Copy(source, rand.NewChaCha8([32]byte{})) }) // ends with the server; Wait below
	if _, err := io.ReadFull(client, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := server.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	within(t, "the server to stand still", func() error { // each of its threads stops by itself
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", server.cmd.Process.Pid))
		for _, name := range threads {
			if text, err := os.ReadFile(name); err == nil && !strings.Contains(string(text), ") T ") {
				return errors.New(string(text))
			}
		}
		return err
	})
	if _, err := client.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	within(t, "the bytes to reach the server", func() error {
		text, err := exit.get("/flows")
		if err == nil && !strings.Contains(text, `"bytes_in": 1000,`) {
			err = errors.New(text)
		}
		return err
	})
	server.kill()
	if err := wantReset(client); err != nil {
		t.Error(err)
	}
	_ = source.Close()
	sending.Wait()
}
