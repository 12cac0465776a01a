package pki

import (
	"os"
	"syscall"
	"testing"
)

func TestExcuse(t *testing.T) {
	const ext4 = 0xef53
	for _, tc := range []struct {
		name          string
		fsType, flags int64
		owner, self   int
		want          string
	}{
		{"plain file of one's own", ext4, 0, 1000, 1000, ""},
		{"plain file of root, gateway is root", ext4, 0, 0, 0, ""},
		{"plain file of another user", ext4, 0, 1001, 1000, ""},
		{"owner not known", ext4, 0, -1, 1000, ""},
		{"root's file, gateway is not root", ext4, 0, 0, 1000, "it belongs to root and the gateway does not run as root"},
		{"tmpfs", tmpfsMagic, 0, 1000, 1000, "it lies on a tmpfs"},
		{"ramfs, as a sign-extended 32-bit value", -0x7a7ba70a, 0, 0, 0, "it lies on a tmpfs"},
		{"read-only mount with other flags", ext4, 0x1021, 0, 0, "it lies on a read-only mount"},
		{"other flags", ext4, 0x1020, 0, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := excuse(tc.fsType, tc.flags, tc.owner, tc.self); got != tc.want {
				t.Errorf("excuse = %q, want %q", got, tc.want)
			}
		})
	}
}

// On a real tmpfs an open key is used, with a warning. Where the machine has none that is writable, only the table
// above is checked.
func TestOpenKeyOnTmpfs(t *testing.T) {
	const shm = "/dev/shm"
	var st syscall.Statfs_t
	if err := syscall.Statfs(shm, &st); err != nil || uint32(st.Type) != tmpfsMagic {
		t.Logf("%s is not a tmpfs", shm)
		return
	}
	dir, err := os.MkdirTemp(shm, "pki-test")
	if err != nil {
		t.Logf("%s cannot be written: %v", shm, err)
		return
	}
	defer os.RemoveAll(dir)
	cfg := identityFiles(t, dir, mustCA(t, testTD), webText)
	if err := os.Chmod(cfg.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	l, log := newLogs()
	if _, err := Load(cfg, log); err != nil {
		t.Fatalf("Load = %v, want a warning only", err)
	}
	if l.count("level=WARN") != 1 || l.count("tmpfs") != 1 || l.count("0644") != 1 {
		t.Errorf("log %q, want one warning about the key", l)
	}
}
