package deploy

import (
	"path/filepath"
	"strings"
	"testing"
)

// configurations are the files below this folder that are a gateway's: a line of them begins with listeners.
func configurations(t *testing.T) (files []string) {
	t.Helper()
	for _, file := range find(t, ".yaml") {
		if strings.Contains("\n"+read(t, file), "\nlisteners:") {
			files = append(files, file)
		}
	}
	return files
}

func TestConfigurationsAreRight(t *testing.T) {
	files := configurations(t)
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			if out, err := try(t, built(t), "check", "--no-files", "-c", file); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	for _, want := range []string{
		"agent", "agents", "chain", "east-west", "east-west-entry", "egress", "egress-proxy", "entry", "forward", "ingress", "uproxy", "waypoint", "x-tun", "x-tun-entry", "zero-trust",
	} {
		if !strings.Contains(strings.Join(files, "\n"), filepath.Join("examples", want+".yaml")) {
			t.Errorf("there is no example for %s", want)
		}
	}
}
