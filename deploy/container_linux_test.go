package deploy

import (
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A container by hand: what the Dockerfile copies into its last stage is the root, mounted read-only; its user has no
// capability and cannot get any, and a network, processes and mounts of its own. The gateway starts, is ready and ends there.
func TestNetnsContainer(t *testing.T) {
	needRoot(t)
	steps := dockerSteps(read(t, "Dockerfile"))
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil {
		t.Fatal(err)
	}
	const state = "/var/lib/culvert"
	for _, dir := range []string{"proc", "dev", state} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "cp", built(t), filepath.Join(root, "gateway"))
	write(t, filepath.Join(root, "etc/culvert/gateway.yaml"),
		"listeners: [{name: mesh, kind: hbone, address: \":15008\"}]\nroutes: [{destinations: [local]}]\nadmin: {address: \"127.0.0.1:15000\"}\n", 0o644)
	uid, gid, _ := strings.Cut(last(steps, "gateway", "USER"), ":")
	if got := last(steps, "gateway", "ENV"); got != "STATE_DIRECTORY="+state || last(steps, "gateway", "VOLUME") != state {
		t.Fatalf("ENV %s, want the folder of VOLUME", got)
	}
	words := func(text string) string {
		var list []string
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return strings.Join(list, " ")
	}
	_, healthcheck, _ := strings.Cut(last(steps, "gateway", "HEALTHCHECK"), "CMD ")
	command := words(last(steps, "gateway", "ENTRYPOINT")) + " " + words(last(steps, "gateway", "CMD"))
	inside := "env -i STATE_DIRECTORY=" + state + " " + program(t, "capsh") + " --drop=all --no-new-privs --chroot=" + root + " --gid=" + gid + " --groups=" + gid + " --uid=" + uid
	script := strings.NewReplacer("ROOT", root, "STATE", state, "UID", uid, "GID", gid, "INSIDE", inside, "HEALTH", strings.TrimPrefix(words(healthcheck), "/gateway "),
		"COMMAND", strings.TrimPrefix(command, "/gateway ")).Replace(`set -eu
ip link set lo up
mount --bind ROOT ROOT
mount -t proc -o ro proc ROOT/proc
mount -t tmpfs -o uid=UID,gid=GID,mode=700 tmpfs ROOT/STATE
mount -o remount,bind,ro ROOT
INSIDE --shell=/gateway -- COMMAND 2>&1 &
gateway=$!
i=0
until INSIDE --shell=/gateway -- HEALTH 2>/dev/null; do i=$((i+1)); [ $i -lt 300 ]; kill -0 $gateway; sleep 0.1; done
grep -E '^(Uid|CapPrm|CapEff|CapBnd|NoNewPrivs):' /proc/$gateway/status
if touch ROOT/etc/x 2>/dev/null; then echo the root can be written; exit 1; fi
ls ROOT/STATE
kill -TERM $gateway
wait $gateway
echo ended well
`)
	cmd := exec.CommandContext(t.Context(), program(t, "unshare"), "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	said := strings.Join(strings.Fields(string(out)), " ")
	for _, want := range []string{"ready", "Uid: " + uid + " " + uid, "CapPrm: 0000000000000000", "CapEff: 0000000000000000", "CapBnd: 0000000000000000", "NoNewPrivs: 1", "identity.key", "ended well"} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing of %q in:\n%s", want, out)
		}
	}
}

func TestProgramIsStatic(t *testing.T) {
	f, err := elf.Open(built(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if libraries, err := f.ImportedLibraries(); len(libraries) > 0 {
		t.Errorf("it needs %q (%v)", libraries, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("it needs a loader")
		}
	}
}
