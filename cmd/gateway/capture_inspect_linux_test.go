package main_test

import (
	"errors"
	"net"
	"strings"
	"testing"
)

// TestNetnsInspect looks into captured flows: each request in them is decided and recorded by itself.
func TestNetnsInspect(t *testing.T) {
	for _, by := range []string{"tproxy", "redirect"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			h := newHosts(t)
			h.write(t, "paths.yaml", []byte("rules:\n- {name: secret, action: deny, to: [{paths: ['/secret']}]}\n"))
			config := h.write(t, "gw.yaml", []byte(`
identity: {cert: client.pem, key: client.key, roots: root.pem}
policy: {files: [paths.yaml]}
listeners:
- {name: out, kind: `+by+`, address: "localhost:15001"}
routes:
- {listeners: [out], destinations: ["`+net.JoinHostPort(farAddr, "80")+`"], inspect: http}
- {listeners: [out], destinations: ["10.0.0.0/8"]}
`))
			g := h.gatewayOn(t, h.app, "", "-c", config)
			h.app.gateway("capture", "install", "--no-dns", "--mode", by)
			within(t, "captured", func() error {
				page := h.app.run("curl", "-sS", "--max-time", "20", "http://"+farAddr+"/page")
				if page != appAddr+" asked for "+farAddr+"/page\n" || !strings.Contains(g.out.String(), "path=/page") {
					return errors.New("no record of a request for " + page)
				}
				return nil
			})
			codes := h.app.run("curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code} ", "http://"+farAddr+"/a", "-o", "/dev/null", "http://"+farAddr+"/secret", "-o", "/dev/null", "http://"+farAddr+"/b")
			if codes != "200 403 200 " {
				t.Errorf("answers %q, want 200, 403, 200", codes)
			}
			g.says(t, "msg=flow", "path=/secret", "rule=secret", "reason=denied", "src="+appAddr)
		})
	}
}
