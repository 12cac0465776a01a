package main_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
)

// doubled is a service behind two networks: an app on app has no ingress before it but the entry on its own host, from which a
// tunnel leads through the gateway on mid, which does not open it, to the workload's gateway on far.
type doubled struct {
	*hosts
	gateways map[string]*gateway // by what they are: entry, between, workload
}

// doubledApp is where the app finds the service of far.
const doubledApp = "127.0.0.1:9000"

func newDoubled(t *testing.T) *doubled {
	t.Helper()
	d := &doubled{hosts: newHosts(t), gateways: make(map[string]*gateway)}
	entryID, workloadID := d.identity(t, "web", "entry"), d.identity(t, "shop", "orders")
	for name, text := range map[string]string{
		"entry": `
identity: {cert: entry.pem, key: entry.key, roots: root.pem}
listeners: [{name: app, kind: forward, address: "` + doubledApp + `", to: "` + far4 + `"}]
hops: {between: {address: "` + midHop + `", identity: "` + serverID + `", inner: {identities: ["` + workloadID + `"], network: net1}}}
routes: [{via: [between]}]
`,
		"between": `
identity: {cert: server.pem, key: server.key, roots: root.pem}
listeners: [{name: mesh, kind: hbone, address: ":15008"}]
routes: [{destinations: ["` + far4 + `"], inner: pass}]
policy: {allow: ["` + strings.TrimPrefix(entryID, "spiffe://") + `"]}
`,
		"workload": `
identity: {cert: orders.pem, key: orders.key, roots: root.pem}
listeners: [{name: mesh, kind: hbone, address: ":15008"}]
workloads: [{name: orders, namespace: shop, addresses: ["` + farAddr + `"]}]
routes: [{destinations: [local]}]
policy: {allow: ["` + strings.TrimPrefix(entryID, "spiffe://") + `"]}
`,
	} {
		d.write(t, name+".yaml", []byte(text))
	}
	for _, name := range []string{"workload", "between", "entry"} {
		d.start(t, name)
	}
	return d
}

// start starts one of the gateways, again where it was killed.
func (d *doubled) start(t *testing.T, name string) {
	t.Helper()
	on := map[string]*host{"entry": d.app, "between": d.mid, "workload": d.far}[name]
	d.gateways[name] = d.gatewayOn(t, on, "", "-c", d.path(name+".yaml"))
}

// TestNetnsDoubleHBONE carries flows over three hosts by a tunnel inside of another, half-closed ones and large ones, and tells
// each hop's part in the records.
func TestNetnsDoubleHBONE(t *testing.T) {
	d := newDoubled(t)
	nc := d.app.opens(doubledApp, farAddr).(*net.TCPConn)
	ztWantEcho(t, nc, 4<<20) // and half-closed
	for range 3 {
		d.app.wantFrom(doubledApp, farAddr)
	}
	for _, g := range d.gateways {
		if g.flowsEnded() == 0 {
			continue // the tunnel that is between lives
		}
		g.idle(t)
	}
	d.gateways["entry"].says(t, "msg=flow", "hop=between", "hop_id=spiffe://cluster.local/ns/shop/sa/orders", "open=", "first_byte=")
	d.gateways["workload"].says(t, "msg=flow", "peer=spiffe://cluster.local/ns/web/sa/entry", "dst="+far4)
	d.gateways["entry"].kill()
	d.gateways["between"].says(t, "msg=flow", "peer=spiffe://cluster.local/ns/web/sa/entry", "dst="+far4, "dial=")
}

// TestNetnsDoubleHBONEKilled kills each hop in the middle of a flow: the flow ends, as a break, and when the hop is there again
// flows are carried as before, with no other gateway started anew.
func TestNetnsDoubleHBONEKilled(t *testing.T) {
	d := newDoubled(t)
	for _, dies := range []string{"entry", "between", "workload"} {
		silent := d.app.opens(doubledApp, farAddr).(*net.TCPConn)
		busy := d.app.opens(doubledApp, farAddr).(*net.TCPConn)
		echoes(t, busy, "before")
		if err := busy.CloseWrite(); err != nil { // and half-closed
			t.Fatal(err)
		}
		d.gateways[dies].kill()
		if _, err := io.ReadAll(silent); dies != "entry" && err == nil {
			t.Errorf("%s killed: a flow without bytes has ended well, though it was cut", dies)
		}
		_, _ = io.ReadAll(busy) // it had ended on one side, and the end of the other was on its way, or not
		if _, nc, err := d.app.from(doubledApp); err == nil {
			_ = nc.Close()
			t.Errorf("%s killed: a flow was carried by a gateway that is not there", dies)
		}
		d.start(t, dies)
		within(t, "flows again, with a new "+dies, func() error {
			_, nc, err := d.app.from(doubledApp)
			if err == nil {
				_ = nc.Close()
			}
			return err
		})
		ztWantEcho(t, d.app.opens(doubledApp, farAddr).(*net.TCPConn), 1<<20)
	}
	if err := errors.Join(d.gateways["entry"].alive(), d.gateways["between"].alive(), d.gateways["workload"].alive()); err != nil {
		t.Error(err)
	}
}
