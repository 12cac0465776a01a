package deploy

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// certificates makes what the files here name in /etc/culvert, of an identity, and returns the folder.
func certificates(t *testing.T, id string) string {
	t.Helper()
	dir := t.TempDir()
	run(t, "sh", "-c", "cd "+dir+" && "+built(t)+" cert ca ca && "+built(t)+" cert issue "+id+" --name shop.example --name localhost"+
		" && mv "+filepath.Base(id)+".pem tls.crt && mv "+filepath.Base(id)+".key tls.key && cp ca/ca.pem ca.crt")
	return dir
}

func TestForeignEnvoyTakesItsFiles(t *testing.T) {
	for _, file := range []string{"envoy-entry.yaml", "envoy-exit.yaml"} {
		t.Run(file, func(t *testing.T) {
			dir := certificates(t, "spiffe://cluster.local/ns/mesh/sa/envoy")
			config := write(t, filepath.Join(dir, file), strings.ReplaceAll(read(t, "beside/"+file), "/etc/culvert/", dir+"/"), 0o600)
			if out, err := try(t, program(t, "envoy"), "--mode", "validate", "-l", "warn", "-c", config); err != nil || !strings.Contains(out, "OK") || strings.Contains(out, "eprecat") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestForeignHAProxyTakesItsFiles(t *testing.T) {
	for _, file := range []string{"haproxy-pass.cfg", "haproxy-proxy.cfg"} {
		t.Run(file, func(t *testing.T) {
			if out, err := try(t, program(t, "haproxy"), "-c", "-V", "-f", "beside/"+file); err != nil || strings.Contains(out, "WARNING") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// Through HAProxy the ends know each other, and its check sees whether a gateway is ready.
func TestForeignHAProxyPassesTunnels(t *testing.T) {
	dir := certificates(t, "spiffe://cluster.local/ns/mesh/sa/east")
	identity := strings.ReplaceAll("identity: {cert: DIR/tls.crt, key: DIR/tls.key, roots: DIR/ca.crt}\n", "DIR", dir)
	mesh, front := freeAddress(t), freeAddress(t)
	admin := running(t, identity+"listeners: [{name: mesh, kind: hbone, address: \""+mesh+"\"}]\nroutes: [{destinations: [local]}]")
	_, adminPort, _ := strings.Cut(admin, ":")
	config := strings.NewReplacer(":15008\n    default", front+"\n    default", "10.0.0.11:15008", mesh, "port 15000", "port "+adminPort,
		"    server two 10.0.0.12:15008 check port 15000\n", "").Replace(read(t, "beside/haproxy-pass.cfg"))
	cmd := exec.Command(program(t, "haproxy"), "-db", "-f", write(t, filepath.Join(dir, "haproxy.cfg"), config, 0o600))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	up(t, front)
	out := run(t, built(t), "ping", "--cert", dir+"/tls.crt", "--key", dir+"/tls.key", "--roots", dir+"/ca.crt", front)
	if !strings.Contains(out, "spiffe://cluster.local/ns/mesh/sa/east") {
		t.Errorf("ping says %s", out)
	}
}
