package main_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// lane is five hosts in a row, between which nothing is routed: only gateways lead from one end to the other.
//
//	app                  west                  east                 out                  far
//	10.11.0.1 ─ 10.11.0.2·10.12.0.1 ─ 10.12.0.2·10.13.0.1 ─ 10.13.0.2·10.14.0.1 ─ 10.14.0.2
//	apps, and the uProxy      two east-west gateways               the egress             servers
type lane struct {
	*mesh
	app, west, east, out, far *host
	gateways                  map[string]*gateway // by the name of their host
	ended                     chan error          // why the servers' connections have ended; nil: well
}

// The servers of a lane: one says what it is told and a tail when the app has ended, one speaks first and ends, one goes on
// speaking when the app has ended.
const (
	laneEcho, laneFirst, laneLast = "10.14.0.2:9000", "10.14.0.2:9001", "10.14.0.2:9002"
	laneBytes                     = 1 << 20
)

func newLane(t *testing.T) *lane {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	l := &lane{mesh: newMesh(t), gateways: make(map[string]*gateway), ended: make(chan error, 100)}
	l.app, l.west, l.east, l.out, l.far = newHost(t, "app"), newHost(t, "west"), newHost(t, "east"), newHost(t, "out"), newHost(t, "far")
	l.app.wire(l.west, "eth0", "eth0", [2]string{"10.11.0.1", "10.11.0.2"})
	l.west.wire(l.east, "eth1", "eth0", [2]string{"10.12.0.1", "10.12.0.2"})
	l.east.wire(l.out, "eth1", "eth0", [2]string{"10.13.0.1", "10.13.0.2"})
	l.out.wire(l.far, "eth1", "eth0", [2]string{"10.14.0.1", "10.14.0.2"})
	l.app.ip("route", "add", "default", "via", "10.11.0.2")
	l.serve(laneEcho, func(nc *net.TCPConn) error {
		if _, err := io.Copy(nc, nc); err != nil {
			return err
		}
		_, err := nc.Write(make([]byte, laneBytes))
		return err
	})
	l.serve(laneFirst, func(nc *net.TCPConn) error {
		if _, err := nc.Write(make([]byte, laneBytes)); err != nil {
			return err
		}
		if err := nc.CloseWrite(); err != nil {
			return err
		}
		got, err := io.ReadAll(nc)
		if err == nil && len(got) != laneBytes {
			err = errors.New("the app's tail is not whole")
		}
		return err
	})
	l.serve(laneLast, func(nc *net.TCPConn) error {
		if _, err := io.ReadAll(nc); err != nil {
			return err
		}
		for {
			if _, err := nc.Write([]byte(".")); err != nil {
				return err
			}
			time.Sleep(10 * time.Millisecond) // between two words
		}
	})
	eastWest := func(next string) string {
		return "listeners: [{name: mesh, kind: hbone, address: \":15008\"}]\nhops: {next: {address: \"" + next + ":15008\"}}\n" +
			"routes: [{destinations: [10.14.0.0/24], via: [next]}]\n"
	}
	for name, text := range map[string]string{
		"app":  "listeners: [{name: captured, kind: tproxy, address: \"localhost:15001\"}]\nhops: {west: {address: \"10.11.0.2:15008\"}}\nroutes: [{via: [west]}]\n",
		"west": eastWest("10.12.0.2"), "east": eastWest("10.13.0.2"),
		"out": "listeners: [{name: mesh, kind: hbone, address: \":15008\"}]\nroutes: [{destinations: [10.14.0.0/24]}]\n",
	} {
		l.identity(t, "default", name)
		l.write(t, name+".yaml", []byte("identity: {cert: "+name+".pem, key: "+name+".key, roots: root.pem}\n"+text))
	}
	l.app.gateway("capture", "install", "--no-dns")
	for _, name := range []string{"out", "east", "west", "app"} {
		l.start(t, name)
	}
	l.app.captured()
	return l
}

// serve runs a server on far. What handle returns goes to ended.
func (l *lane) serve(addr string, handle func(*net.TCPConn) error) {
	ln := l.far.listen(addr)
	go func() { // ends with the listener, which the cleanup closes
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection, which the gateways' end ends at the latest
				defer nc.Close()
				l.ended <- handle(nc.(*net.TCPConn))
			}()
		}
	}()
}

// start starts the gateway of a host, again where it was killed.
func (l *lane) start(t *testing.T, name string) {
	t.Helper()
	on := map[string]*host{"app": l.app, "west": l.west, "east": l.east, "out": l.out}[name]
	l.gateways[name] = l.gatewayOn(t, on, "", "-c", l.path(name+".yaml"))
}

// dial opens a flow of the app. Where the way is open it takes no time; where it is not, nobody answers.
func (l *lane) dial(t *testing.T, addr string) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience/10)
	defer cancel()
	nc, err := l.app.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = nc.SetDeadline(deadline())
	return nc.(*net.TCPConn), nil
}

// open is dial of a flow that must stand, and carries bytes.
func (l *lane) open(t *testing.T) *net.TCPConn {
	t.Helper()
	nc, err := l.dial(t, laneEcho)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	echoes(t, nc, "hello")
	return nc
}

// serverEnded waits for the end of one connection at the servers.
func (l *lane) serverEnded(t *testing.T) error {
	t.Helper()
	select {
	case err := <-l.ended:
		return err
	case <-time.After(patience):
		t.Fatal("no server's connection has ended")
		return nil
	}
}

// halfClosed carries a flow that each side ends by itself, the app first and the server first.
func (l *lane) halfClosed(t *testing.T) {
	t.Helper()
	nc := l.open(t)
	said := bytes.Repeat([]byte("0123456789abcdef"), laneBytes/16)
	go func() { // ends when all is written, which the answers below wait for
		_, _ = nc.Write(said)
		_ = nc.CloseWrite()
	}()
	got, err := io.ReadAll(nc)
	if want := append(said, make([]byte, laneBytes)...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the app has ended first, and read %d bytes, %v, want %d and the end", len(got), err, len(want))
	}
	if err := l.serverEnded(t); err != nil {
		t.Errorf("the server's connection: %v", err)
	}
	second, err := l.dial(t, laneFirst)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if got, err := io.ReadAll(second); err != nil || len(got) != laneBytes {
		t.Errorf("the server has ended first, and the app read %d bytes, %v, want %d and the end", len(got), err, laneBytes)
	}
	if _, err := second.Write(said); err != nil {
		t.Errorf("to a server that has ended: %v", err)
	}
	_ = second.CloseWrite()
	if err := l.serverEnded(t); err != nil {
		t.Errorf("the server that has ended first: %v", err)
	}
}

// TestNetnsEgress carries flows of unmodified apps over five hosts. Each gateway sees its neighbours, and the server the egress.
func TestNetnsEgress(t *testing.T) {
	l := newLane(t)
	l.halfClosed(t)
	l.gateways["app"].says(t, "msg=flow", "way=tproxy", "dst="+laneEcho, "hop=west")
	for name, peer := range map[string]string{"west": "app", "east": "west", "out": "east"} {
		l.gateways[name].says(t, "msg=flow", "peer=spiffe://cluster.local/ns/default/sa/"+peer, "dst="+laneEcho)
	}
}

// TestNetnsEgressKilled kills each gateway in the middle, and starts it again: what lives is broken off, and nobody takes it for
// ended, but for who is beside the killed process itself, whose sockets the system closes; new flows are carried with no other
// gateway started anew.
func TestNetnsEgressKilled(t *testing.T) {
	l := newLane(t)
	for _, dies := range []string{"west", "east", "out", "app"} {
		live := l.open(t)
		half, err := l.dial(t, laneLast)
		if err != nil {
			t.Fatal(err)
		}
		_ = half.CloseWrite()
		if _, err := io.ReadFull(half, make([]byte, 3)); err != nil {
			t.Fatalf("%s lives, and a half-closed flow brings nothing: %v", dies, err)
		}
		l.gateways[dies].kill()
		for name, nc := range map[string]*net.TCPConn{"live": live, "half-closed": half} {
			if _, err := io.ReadAll(nc); dies != "app" && (err == nil || strings.Contains(err.Error(), "timeout")) {
				t.Errorf("%s killed: the %s flow reads %v, want that it broke", dies, name, err)
			}
			_ = nc.Close()
		}
		for range 2 {
			if err := l.serverEnded(t); dies != "out" && err == nil {
				t.Errorf("%s killed: a server's connection has ended well, though it was cut", dies)
			}
		}
		if nc, err := l.dial(t, laneFirst); err == nil {
			if got, err := io.ReadAll(nc); err == nil && len(got) > 0 {
				t.Errorf("%s killed: a flow was carried by a gateway that is not there", dies)
			}
			_ = nc.Close()
		}
		l.start(t, dies)
		within(t, "flows again, with a new "+dies, func() error {
			nc, err := l.dial(t, laneEcho)
			if err != nil {
				return err
			}
			defer nc.Close()
			if _, err = nc.Write([]byte("x")); err == nil {
				_, err = io.ReadFull(nc, make([]byte, 1))
			}
			return err
		})
		for len(l.ended) > 0 {
			<-l.ended // of attempts
		}
		l.gateways["out"].idle(t)
		for len(l.ended) > 0 {
			<-l.ended
		}
		l.halfClosed(t)
	}
}
