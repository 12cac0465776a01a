package main_test

import (
	"strings"
	"testing"
)

// TestNetnsInstallKeepsFlows replaces rules under flows that a gateway carries: they go on, and no new flow passes by.
func TestNetnsInstallKeepsFlows(t *testing.T) {
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := capturedHosts(t)
			h.app.gateway(append([]string{"capture", "install"}, v.install...)...)
			h.gatewayOn(t, h.app, "client", v.run, "--via", midHop)
			within(t, "captured", func() error { return h.app.arrives(far4, outAddr) })
			open := h.app.opens(far4, outAddr)
			for _, more := range [][]string{nil, {"--exclude", "192.0.2.0/24"}, {"--no-dns"}, {"--fail", "closed"}} {
				h.app.gateway(append(append([]string{"capture", "install"}, v.install...), more...)...)
				h.app.wantFrom(far4, outAddr) // at once
				echoes(t, open, "after "+strings.Join(more, " "))
			}
			// What cannot be installed leaves everything as it is.
			if out, _, err := h.app.tryGateway("capture", "install", "--backend", "nft", "--exclude-cgroup", "there.is/none"); err == nil {
				t.Errorf("install prints %q, want it to fail", out)
			}
			h.app.wantFrom(far4, outAddr)
			echoes(t, open, "still")
		})
	}
}
