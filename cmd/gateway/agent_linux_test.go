package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"culvert/tunnel"
)

// behindNAT are hosts of which app is behind a NAT: it reaches far, and far does not reach it.
type behindNAT struct {
	*hosts
	hub *gateway
}

// hubYAML is a gateway on far that agents register at: programs there use its SOCKS listener, and a port that leads to cam1.
const hubYAML = `
identity: {cert: %[1]s.pem, key: %[1]s.key, roots: root.pem}
listeners:
- {name: mesh, kind: hbone, address: ":15008", agents: [{from: ["%[2]s", "%[3]s"], names: ["*.devices.example"]}]}
- {name: apps, kind: socks5, address: "127.0.0.1:1080"}
- {name: echo, kind: forward, address: "127.0.0.1:9007", to: "cam1.devices.example:7"}
routes:
- {listeners: [apps, echo], hosts: ["*.devices.example"], destinations: ["fd00::/8"], agents: true}
`

// ruleset is the NAT.
const natRules = `
table ip nat { chain out { type nat hook postrouting priority 100; oifname "eth1" masquerade; }; }
table ip guard { chain pass { type filter hook forward priority 0; iifname "eth1" ct state new reject; }; }
`

func newBehindNAT(t *testing.T) *behindNAT {
	t.Helper()
	n := &behindNAT{hosts: newHosts(t)}
	n.mid.run("nft", natRules)
	n.app.web(net.JoinHostPort(appAddr, "8080"))
	n.write(t, "hub.yaml", []byte(fmt.Sprintf(hubYAML, "server", clientID, othernsID)))
	n.startHub(t)
	return n
}

func (n *behindNAT) startHub(t *testing.T) {
	t.Helper()
	n.hub = n.gatewayOn(t, n.far, "", "-c", n.path("hub.yaml"))
}

// agent starts an agent on app, which offers the web server and the echo there.
func (n *behindNAT) agent(t *testing.T, identity, admin string, flag ...string) *gateway {
	t.Helper()
	return n.commandOn(t, n.app, "agent", admin, identity, append([]string{"--via", farAddr + ":15008", "--hop-id", serverID,
		"--offer", "80=" + appAddr + ":8080", "--offer", "7=" + app4}, flag...)...)
}

// agents are those that the hub has.
func (n *behindNAT) agents() (list []tunnel.AgentInfo, err error) {
	text, err := n.hub.get("/agents")
	if err == nil {
		err = json.Unmarshal([]byte(text), &list)
	}
	return list, err
}

// registered waits for so many agents.
func (n *behindNAT) registered(t *testing.T, want int) (list []tunnel.AgentInfo) {
	t.Helper()
	within(t, "agents registered", func() error {
		var err error
		if list, err = n.agents(); err != nil {
			return err
		}
		whole := 0
		for i := range list {
			if len(list[i].Names) > 0 { // the last that it gets
				whole++
			}
		}
		if len(list) != want || whole != want {
			err = fmt.Errorf("%d agents, of which %d have names, want %d", len(list), whole, want)
		}
		return err
	})
	return list
}

// fetch gets the page of the web server on app, as a program on far.
func (n *behindNAT) fetch(host string) error {
	out, errs, err := n.far.try("curl", "-sS", "-m", "15", "--socks5-hostname", "127.0.0.1:1080", "http://"+host+"/page")
	if err == nil && !strings.Contains(out, " asked for "+host+"/page") {
		err = errors.New("the page is " + out)
	}
	if err != nil {
		return fmt.Errorf("fetch from %s: %w %s", host, err, errs)
	}
	return nil
}

func (n *behindNAT) wantFetch(t *testing.T, host string) {
	t.Helper()
	if err := n.fetch(host); err != nil {
		t.Error(err)
	}
}

// TestNetnsAgent reaches an agent behind a NAT by its name and by the addresses of its key, half-closed as well; kills and
// restarts the agent and its gateway in the middle; and has another agent of the name take over at once.
func TestNetnsAgent(t *testing.T) {
	n := newBehindNAT(t)
	if _, _, err := n.far.from(app4); err == nil {
		t.Fatal("far reaches app, so that this is no NAT")
	}
	first := n.agent(t, "client", "127.0.0.1:15000", "--name", "cam1.devices.example")
	info := n.registered(t, 1)[0]
	if info.Peer != clientID || !strings.HasPrefix(info.Src, outAddr+":") || len(info.Addrs) != 2 {
		t.Errorf("the agent is %+v; want %s, seen from %s, with two addresses", info, clientID, outAddr)
	}
	n.wantFetch(t, "cam1.devices.example")
	for _, addr := range info.Addrs {
		n.wantFetch(t, "["+addr+"]")
	}
	n.halfClosed(t)

	open := n.far.opens("127.0.0.1:9007", appAddr)
	first.kill()
	if got, err := io.ReadAll(open); err == nil {
		t.Errorf("the flow through an agent that was killed ended well, with %q", got)
	}
	first = n.agent(t, "client", "127.0.0.1:15000", "--name", "cam1.devices.example")
	within(t, "the agent is back", func() error { return n.fetch("cam1.devices.example") })

	open = n.far.opens("127.0.0.1:9007", appAddr)
	n.hub.kill()
	_, _ = io.Copy(io.Discard, open) // how it ends is the system's doing
	n.startHub(t)
	n.registered(t, 1)
	n.wantFetch(t, "cam1.devices.example")

	n.agent(t, "otherns", "127.0.0.1:15001", "--name", "cam1.devices.example", "--name", "cam2.devices.example")
	n.registered(t, 2)
	first.kill()
	for range 5 {
		n.wantFetch(t, "cam1.devices.example")
		n.halfClosed(t)
	}
	n.wantFetch(t, "cam2.devices.example")
}

// halfClosed sends through the agent, ends that direction, and reads what comes back until the other end.
func (n *behindNAT) halfClosed(t *testing.T) {
	t.Helper()
	nc := n.far.opens("127.0.0.1:9007", appAddr)
	defer nc.Close()
	text := strings.Repeat("half-closed ", 20_000)
	wrote := make(chan error, 1)
	go func() { // ends with the connection; waited for below
		_, err := io.WriteString(nc, text)
		wrote <- errors.Join(err, nc.(*net.TCPConn).CloseWrite())
	}()
	got, err := io.ReadAll(nc)
	if err = errors.Join(err, <-wrote); err != nil || string(got) != text {
		t.Errorf("%d bytes came back, %v, want %d", len(got), err, len(text))
	}
}

// TestNetnsAgentForgotten has the NAT forget the agent's connection: nothing of it passes any more, and nobody is told.
// Both ends find that, and the agent is reached on another connection.
func TestNetnsAgentForgotten(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a quarter of a minute; make test has it")
	}
	n := newBehindNAT(t)
	n.agent(t, "client", "127.0.0.1:15000", "--name", "cam1.devices.example")
	before := n.registered(t, 1)[0]
	_, port, err := net.SplitHostPort(before.Src)
	if err != nil {
		t.Fatal(err)
	}
	n.mid.run("nft", "table ip forgets { chain pass { type filter hook forward priority -10; tcp sport "+port+" drop; tcp dport "+port+" drop; }; }")
	within(t, "another connection", func() error {
		list, err := n.agents()
		if err == nil && (len(list) != 1 || list[0].Src == before.Src) {
			err = fmt.Errorf("the agents are %+v", list)
		}
		return err
	})
	n.wantFetch(t, "cam1.devices.example")
}
