package main_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// orders is the service of the tests of east-west, and the port that is asked for.
const orders = "orders.shop.svc.example:80"

// identity issues a certificate for spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT under the name ACCOUNT, and returns its ID.
func (m *mesh) identity(t *testing.T, namespace, account string) string {
	t.Helper()
	u, err := url.Parse("spiffe://cluster.local/ns/" + namespace + "/sa/" + account)
	if err != nil {
		t.Fatal(err)
	}
	m.issue(t, account, &x509.Certificate{URIs: []*url.URL{u}})
	return u.String()
}

// TestForeignDoubleHBONE has a peer that is written from HBONE.md open a tunnel inside of one to our gateway, which passes it
// to a pod that is such a peer, too.
func TestForeignDoubleHBONE(t *testing.T) {
	m := newMesh(t)
	podID := m.identity(t, "shop", "orders")
	resolver, _ := nameServer(t)
	pod, seen := m.ztServer(t, m.ztTLS(t, "orders", clientID), ztEcho)
	ew := m.configured(t, "server", `
resolver: {upstream: ["`+resolver+`"]}
listeners: [{name: mesh, kind: hbone, address: "$ADDR"}]
routes: [{hosts: [orders.shop.svc.example], inner: pass, innerPort: `+port(pod)+`}]
policy: {egress: ["127.0.0.0/8"]}
`)
	outer, err := ztDial(t, dial(t, ew.addr), m.ztTLS(t, "client", serverID))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 70_000, 1 << 20} { // each flow has tunnels of its own
		tunnel, err := outer.connect(orders)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(tunnel.field("baggage"), "server") {
			t.Errorf("baggage of the answer is %q, want the gateway's own", tunnel.field("baggage"))
		}
		inner, err := ztDial(t, tunnel, m.ztTLS(t, "client", podID))
		if err != nil {
			t.Fatal(err)
		}
		s, err := inner.connect(orders, "x-forwarded-network", "net1")
		if err != nil {
			t.Fatal(err)
		}
		ztWantEcho(t, s, n)
		if got := <-seen; got.peer != clientID || got.request.field(":authority") != orders || got.request.field("x-forwarded-network") != "net1" {
			t.Errorf("the pod sees %s asking for %s from %s", got.peer, got.request.field(":authority"), got.request.field("x-forwarded-network"))
		}
		_ = inner.nc.Close()
	}
	ew.says(t, "msg=flow", "peer="+clientID, "host="+orders, "dst=127.0.0.1:"+port(pod))
	if _, err := outer.connect("other.example:80"); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("another name: %v, want 401", err)
	}
	tunnel, err := outer.connect(orders)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ztDial(t, tunnel, m.ztTLS(t, "client")); err == nil {
		t.Error("an empty list of identities has connected")
	}
	_ = outer.nc.Close()
	ew.idle(t)
}

// TestForeignInnerTunnels has our entry open tunnels inside of those to a gateway that is written from HBONE.md, to such a pod.
func TestForeignInnerTunnels(t *testing.T) {
	m := newMesh(t)
	podID := m.identity(t, "shop", "orders")
	entryID := m.identity(t, "web", "entry")
	pod, seen := m.ztServer(t, m.ztTLS(t, "orders", entryID), ztEcho)
	ew, outer := m.ztServer(t, m.ztTLS(t, "server", entryID), func(s *ztStream) { // passes bytes, whatever they are
		nc, err := net.Dial("tcp", pod)
		if err != nil {
			return
		}
		defer nc.Close()
		var up sync.WaitGroup
		up.Go(func() { // ends with the stream; Wait below
			_, _ = io.Copy(nc, s)
			_ = nc.(*net.TCPConn).CloseWrite()
		})
		_, _ = io.Copy(s, nc)
		_ = s.CloseWrite()
		up.Wait()
	})
	entry := m.configured(t, "entry", `
listeners: [{name: app, kind: forward, address: "$ADDR", to: "`+orders+`"}]
hops: {ew: {address: "`+ew+`", identity: "`+serverID+`", inner: {identities: ["`+podID+`"], network: net1}}}
routes: [{via: [ew]}]
`)
	for _, n := range []int{0, 1, 70_000, 1 << 20} {
		echoHalfClosed(t, entry.addr, n)
	}
	first := <-outer
	if first.sni != "" || first.alpn != "h2" || first.peer != entryID || first.request.field(":authority") != orders ||
		first.request.names() != ":method :authority baggage traceparent" {
		t.Errorf("the gateway sees %+v, fields %s, want a CONNECT to the name and no server name", first, first.request.names())
	}
	for range 4 {
		got := <-seen
		if got.sni != "" || got.alpn != "h2" || got.peer != entryID || got.request.field(":authority") != orders || got.request.field("x-forwarded-network") != "net1" ||
			got.request.names() != ":method :authority baggage forwarded traceparent x-forwarded-network" {
			t.Errorf("the pod sees %+v, fields %s, want the same authority, and what a ztunnel tells", got, got.request.names())
		}
	}
	entry.says(t, "msg=flow", "host="+orders, "hop=ew", "hop_id="+podID)
	entry.idle(t)
}

// TestForeignInnerIdentity has the pod be somebody else than the list says, such as the gateway before it.
func TestForeignInnerIdentity(t *testing.T) {
	m := newMesh(t)
	podID := m.identity(t, "shop", "orders")
	entryID := m.identity(t, "web", "entry")
	ew, _ := m.ztServer(t, m.ztTLS(t, "server", entryID), func(s *ztStream) { // opens what it should pass on
		tc := tls.Server(s, m.ztTLS(t, "server", entryID))
		_ = tc.Handshake()
	})
	entry := m.configured(t, "entry", `
listeners: [{name: app, kind: forward, address: "$ADDR", to: "`+orders+`"}]
hops: {ew: {address: "`+ew+`", identity: "`+serverID+`", inner: {identities: ["`+podID+`"]}}}
routes: [{via: [ew]}]
`)
	nc := dial(t, entry.addr)
	if _, err := nc.Read(make([]byte, 1)); err == nil {
		t.Error("bytes came through a tunnel that somebody else has opened")
	}
	entry.says(t, "msg=flow", "reason=hop-identity", serverID)
}

// TestForeignSNI has curl and OpenSSL come to the port where tunnels come: their TLS is passed on by its server name, and
// tunnels are served beside.
func TestForeignSNI(t *testing.T) {
	m := newMesh(t)
	secure, plain := startWeb(t, m.webTLS(t)), newWeb(t)
	resolver, _ := nameServer(t)
	ew := m.configured(t, "server", `
resolver: {upstream: ["`+resolver+`"]}
listeners: [{name: mesh, kind: hbone, address: "$ADDR", sniPassthrough: true}]
routes:
- {hosts: ["web.example:`+secure.port+`"], from: any}
- {destinations: [local]}
policy: {egress: ["127.0.0.0/8"]}
`)
	sni := "outbound_." + secure.port + "_._.web.example"
	secure.curlFetches(t, "https://"+sni, "-k", "--connect-to", "::"+ew.addr)
	secure.curlFetches(t, "https://"+sni, "-k", "--http1.1", "--tls-max", "1.2", "--connect-to", "::"+ew.addr)
	ew.says(t, "msg=flow", "way=sni", "host=web.example:"+secure.port, "sni="+sni, "open=routes[0]")
	entry := m.forward(t, ew.addr, plain.addr)
	plain.curlFetches(t, "http://"+entry.addr)
	for _, name := range []string{"outbound_.1_._.web.example", "outbound_." + secure.port + "_._.other.example"} {
		if _, stderr, err := try(t, "curl", "-q", "-sSk", "-m", "30", "--connect-to", "::"+ew.addr, "https://"+name+"/"); err == nil {
			t.Errorf("curl to %s succeeded: %s", name, stderr)
		}
	}
	ew.idle(t)
}

// TestForeignWaypoint has a peer that is written from HBONE.md ask our gateway, a waypoint, for a service by its virtual address
// and by its name: it opens a tunnel to the pod under its own identity, for the pod's address.
func TestForeignWaypoint(t *testing.T) {
	m := newMesh(t)
	podID := m.identity(t, "shop", "orders")
	waypointID := m.identity(t, "shop", "waypoint")
	pod, seen := m.ztServer(t, m.ztTLS(t, "orders", waypointID), ztEcho)
	waypoint := m.configured(t, "waypoint", `
listeners: [{name: mesh, kind: hbone, address: "$ADDR"}]
hops: {pod: {address: "`+pod+`", identity: "`+podID+`"}}
routes: [{hosts: ["`+orders+`"], destinations: ["10.96.0.10:80"], to: "127.0.0.1:8080", via: [pod]}]
policy: {allow: ["`+strings.TrimPrefix(clientID, "spiffe://")+`"]}
`)
	c, err := ztDial(t, dial(t, waypoint.addr), m.ztTLS(t, "client", waypointID))
	if err != nil {
		t.Fatal(err)
	}
	for _, authority := range []string{"10.96.0.10:80", orders} {
		s, err := c.connect(authority, "x-istio-source", "waypoint", "x-forwarded-network", "net9") // which a stranger may not say
		if err != nil {
			t.Fatal(err)
		}
		ztWantEcho(t, s, 70_000)
		got := <-seen
		if got.peer != waypointID || got.request.field(":authority") != "127.0.0.1:8080" || got.request.field("x-istio-source")+got.request.field("x-forwarded-network") != "" {
			t.Errorf("the pod sees %s asking for %s, fields %v, want the waypoint, the pod's address, and nothing forged",
				got.peer, got.request.field(":authority"), got.request.head)
		}
		if strings.Contains(got.request.field("baggage"), "zt") || !strings.Contains(got.request.field("forwarded"), `for="127.0.0.1:`) {
			t.Errorf("the pod is told baggage %q, forwarded %q, want what the waypoint knows", got.request.field("baggage"), got.request.field("forwarded"))
		}
	}
	if _, err := c.connect("10.96.0.11:80"); err == nil {
		t.Error("another virtual address was taken")
	}
	waypoint.says(t, "msg=flow", "peer="+clientID, "hop=pod", "hop_id="+podID)
	waypoint.idle(t)
}
