package main

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"culvert/pki"
	"culvert/pki/spiffe"
)

// crl writes a revocation list of the mesh's CA of the certificates called names.
func (m *mesh) crl(caDir string, names ...string) []byte {
	m.t.Helper()
	ca := must(tls.LoadX509KeyPair(caDir+"/ca.pem", caDir+"/ca.key"))
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, name := range names {
		cert := must(tls.LoadX509KeyPair(m.path(name+".pem"), m.path(name+".key")))
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: cert.Leaf.SerialNumber, RevocationTime: time.Now()})
	}
	der := must(x509.CreateRevocationList(rand.Reader, list, ca.Leaf, ca.PrivateKey.(crypto.Signer)))
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// replaceFile puts text in the place of a file in one step.
func (m *mesh) replaceFile(name string, text []byte) {
	m.t.Helper()
	next := m.write(name+".next", text)
	if err := os.Rename(next, m.path(name)); err != nil {
		m.t.Fatal(err)
	}
}

// keptCA gives the mesh a CA whose key is in a file.
func (m *mesh) keptCA() (dir string) {
	m.t.Helper()
	dir = m.path("ca")
	m.ca = must(pki.CreateCA(dir, "cluster.local"))
	m.write("roots.pem", m.ca.PEM())
	for _, name := range []string{"entry", "exit", "other"} {
		m.identity(name, "spiffe://cluster.local/ns/default/sa/"+name)
	}
	return dir
}

// The live flows of an identity that is revoked end soon after its CA's list says so, without a signal, and it gets no
// new ones; those of others live on.
func TestRevokedPeerLosesItsFlows(t *testing.T) {
	m := newMesh(t)
	dir := m.keptCA()
	m.write("ca.crl", m.crl(dir))
	ln, adm := listenLoopback(t), listenLoopback(t)
	m.write("exit.yaml", fmt.Appendf(nil, `%strust: {crls: [ca.crl]}
admin: {address: "%s"}
listeners:
- {name: mesh, kind: hbone, address: "%s"}
routes:
- {listeners: [mesh], destinations: [local]}
`, m.yaml("exit"), adm.Addr(), ln.Addr()))
	exit := &running{address: ln.Addr().String(), admin: adm.Addr().String()}
	exit.process = gatewayProcess(t, "run", "-c", m.path("exit.yaml")).inherit(ln, adm).start()
	exit.ready()
	target := echoServer(t)
	entry, other := m.runReady("entry", "--socks", "--via", exit.address), m.runReady("other", "--socks", "--via", exit.address)
	revoked, lives := must(dialSOCKS(t, entry.address, target)), must(dialSOCKS(t, other.address, target))
	for _, nc := range []net.Conn{revoked, lives} {
		if err := echo(nc, "before"); err != nil {
			t.Fatal(err)
		}
	}
	m.replaceFile("ca.crl", m.crl(dir, "entry"))
	start := time.Now()
	_ = revoked.SetDeadline(time.Now().Add(patience))
	if _, err := revoked.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the flow of the revoked peer reads %v, want ECONNRESET", err)
	}
	t.Logf("the live flow ended %v after the list was written", time.Since(start))
	if err := echo(lives, "after"); err != nil {
		t.Errorf("the flow of another peer: %v", err)
	}
	if _, err := dialSOCKS(t, entry.address, target); err == nil {
		t.Error("the revoked peer got a new flow")
	}
	if log := exit.stderr.String(); !strings.Contains(log, "reason=revoked") || !strings.Contains(log, "was revoked by") {
		t.Errorf("the log does not say why:\n%s", log)
	}
}

// Certificates that live for seconds are exchanged each second while flows come and go: none is refused and none is cut.
// With SOAK it takes a minute.
func TestRotationUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	period := 6 * time.Second
	if os.Getenv("SOAK") != "" {
		period = time.Minute
	}
	const life = 4 * time.Second
	m := newMesh(t)
	issue := func(name string) {
		id := must(spiffe.New("cluster.local", "default", name))
		cert, key, err := m.ca.Issue(id, life)
		if err != nil {
			t.Error(err)
			return
		}
		if err := pki.WriteIdentity(m.path(name+".pem"), m.path(name+".key"), cert, key); err != nil {
			t.Error(err)
		}
	}
	issue("entry")
	issue("exit")
	stop := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() { // ends with stop
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				issue("exit")
				issue("entry")
			}
		}
	})
	exit := m.runReady("exit", "--hbone")
	entry := m.runReady("entry", "--socks", "--via", exit.address)
	target := echoServer(t)
	live := must(dialSOCKS(t, entry.address, target))
	var flows atomic.Int64
	for range 4 {
		work.Go(func() { // ends with stop
			for {
				select {
				case <-stop:
					return
				default:
				}
				nc, err := dialSOCKS(t, entry.address, target)
				if err == nil {
					err = echo(nc, "x")
					_ = nc.Close()
				}
				if err != nil {
					t.Errorf("flow %d: %v", flows.Load(), err)
					return
				}
				flows.Add(1)
			}
		})
	}
	for end := time.Now().Add(period); time.Now().Before(end) && !t.Failed(); time.Sleep(100 * time.Millisecond) {
		if err := echo(live, "still"); err != nil {
			t.Errorf("the flow that lives all the time: %v", err)
		}
	}
	close(stop)
	work.Wait()
	t.Logf("%d flows with certificates of %v, exchanged each second for %v", flows.Load(), life, period)
	for _, log := range []string{exit.stderr.String(), entry.stderr.String()} {
		if n := strings.Count(log, "identity renewed"); n < int(period/time.Second)/2 {
			t.Errorf("only %d renewals were taken", n)
		}
	}
}
