//go:build ztunnel && linux

package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The virtual addresses of two services: one in another network, behind the gateway on mid, and one behind a waypoint, which is
// that gateway as well.
const farVIP, waypointVIP = "10.96.0.20", "10.96.0.30"

// ztunnelWorkloads is what a ztunnel on app is told of the mesh instead of by xDS.
const ztunnelWorkloads = `workloads:
- {uid: c1/zt, name: zt, namespace: default, serviceAccount: zt, trustDomain: cluster.local, workloadIps: ["` + appAddr + `"],
   protocol: HBONE, node: n1, clusterId: c1, workloadName: zt, workloadType: deployment, canonicalName: zt, canonicalRevision: v1, services: {}}
- {uid: c1/gw, name: gw, namespace: default, serviceAccount: gw, trustDomain: cluster.local, workloadIps: ["` + midAddr + `"],
   protocol: HBONE, node: n2, clusterId: c1, workloadName: gw, workloadType: deployment, canonicalName: gw, canonicalRevision: v1,
   services: {"default/viawp.default.svc.cluster.local": {7: 7}}}
- {uid: c1/far, name: far, namespace: remote, serviceAccount: remote, trustDomain: cluster.local, workloadIps: [], protocol: HBONE, network: net2,
   networkGateway: {destination: "/` + midAddr + `", hboneMtlsPort: 15008}, services: {"remote/far.remote.svc.cluster.local": {7: 7}}}
services:
- {name: far, namespace: remote, hostname: far.remote.svc.cluster.local, vips: ["/` + farVIP + `"], ports: {7: 7},
   subjectAltNames: ["spiffe://cluster.local/ns/remote/sa/remote"]}
- {name: viawp, namespace: default, hostname: viawp.default.svc.cluster.local, vips: ["/` + waypointVIP + `"], ports: {7: 7},
   waypoint: {destination: "/` + midAddr + `", hboneMtlsPort: 15008}}
policies: []
`

// ztunnelGateway is the gateway on mid: a workload, the gateway between two networks, and a waypoint.
const ztunnelGateway = `
listeners:
- {name: mesh, kind: hbone, address: ":15008"}
- {name: plain, kind: forward, address: "127.0.0.1:9001", to: "` + app4 + `"}
routes:
- {listeners: [plain], via: ["` + appAddr + `:15008"]}
- {listeners: [mesh], hosts: [far.remote.svc.cluster.local], inner: pass, to: "` + far4 + `"}
- {listeners: [mesh], destinations: ["` + waypointVIP + `:7"], to: "` + midAddr + `:7"}
- {listeners: [mesh], destinations: [local]}
`

// TestZtunnel has a real ztunnel, $ZTUNNEL_BIN, take its certificate from `gateway ca serve` by the token of a service account,
// and carries flows between it and a gateway, both ways, by tunnels inside of tunnels to a workload in another network, and to a
// gateway that is a waypoint. `make interop-ztunnel` runs it; it is no part of `make test`.
func TestZtunnel(t *testing.T) {
	bin := os.Getenv("ZTUNNEL_BIN")
	if bin == "" {
		t.Fatal("ZTUNNEL_BIN is not set; it should be the path of a ztunnel")
	}
	h := newHosts(t)
	h.mid.whoServer(midAddr + ":7")
	state, dir := t.TempDir(), t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	write("issuer.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	tokens := write("tokens.yaml", "issuers: [{issuer: cluster, audiences: [istio-ca], kubernetes: true, keys: [{file: issuer.pem}]}]\n")
	token, err := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": "cluster", "aud": "istio-ca", "sub": "system:serviceaccount:default:zt", "exp": time.Now().Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": "default", "serviceaccount": map[string]any{"name": "zt", "uid": "1"}},
	}).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	write("var/run/secrets/tokens/istio-token", token)

	// The first host: its gateway, whose identity the workload gw has, and its CA.
	ca := start(t, h.mid.on(state, "ca", "serve", "--address", midAddr+":15012", "--tokens", tokens))
	ca.says(t, "CA serves", midAddr+":15012")
	joined, err := h.mid.on(state, "ca", "token", "spiffe://cluster.local/ns/default/sa/gw").Output()
	if err != nil {
		t.Fatal(err)
	}
	member := t.TempDir()
	h.mid.types(member, string(joined))
	g := &gateway{admin: "127.0.0.1:15100", dials: h.mid.dial}
	g.process = start(t, h.mid.on(member, "run", "--admin", g.admin, "-c", write("gateway.yaml", ztunnelGateway)))
	g.ready(t)

	// The workload in the other network, before which a gateway stands, too.
	joined, err = h.mid.on(state, "ca", "token", "spiffe://cluster.local/ns/remote/sa/remote").Output()
	if err != nil {
		t.Fatal(err)
	}
	remote := t.TempDir()
	h.far.types(remote, string(joined))
	far := start(t, h.far.on(remote, "run", "--admin", "127.0.0.1:15100", "--hbone", ":15008", "--allow", "cluster.local/ns/default/sa/zt"))

	zt := exec.Command(program(t, "ip"), "netns", "exec", h.app.name, bin)
	zt.Dir = dir
	zt.Env = append(os.Environ(), "PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=default/zt/zt", "XDS_ADDRESS=", "CLUSTER_ID=c1",
		"LOCAL_XDS_PATH="+write("local.yaml", ztunnelWorkloads), "CA_ADDRESS=https://"+midAddr+":15012", "CA_ROOT_CA="+filepath.Join(member, "ca.pem"),
		"UNSTABLE_ENABLE_SOCKS5=true", "ENABLE_ORIG_SRC=false", "IPV6_ENABLED=false", "RUST_LOG=info")
	start(t, zt)

	// From the ztunnel to the gateway: its SOCKS listener is 15080.
	within(t, "a flow from the ztunnel", func() error {
		page, errs, err := h.app.try("curl", "-sS", "--max-time", "10", "--proxy", "socks5h://127.0.0.1:15080", "telnet://"+midAddr+":7")
		if err != nil && !strings.Contains(page, midAddr) {
			return errors.New(errs)
		}
		return nil
	})
	g.says(t, "msg=flow", "peer=spiffe://cluster.local/ns/default/sa/zt")
	for name, to := range map[string]struct{ vip, source string }{
		"double HBONE": {farVIP, farAddr}, "the waypoint": {waypointVIP, midAddr},
	} {
		within(t, name, func() error {
			page, errs, err := h.app.try("curl", "-sS", "--max-time", "10", "--proxy", "socks5h://127.0.0.1:15080", "telnet://"+to.vip+":7")
			if err != nil && !strings.Contains(page, to.source) {
				return errors.New(errs)
			}
			return nil
		})
	}
	far.says(t, "msg=flow", "peer=spiffe://cluster.local/ns/default/sa/zt")
	g.says(t, "msg=flow", "host=far.remote.svc.cluster.local:7", "peer=spiffe://cluster.local/ns/default/sa/zt")
	// And from the gateway to the ztunnel, whose workload is on the same host.
	h.mid.wantFrom("127.0.0.1:9001", appAddr)
}
