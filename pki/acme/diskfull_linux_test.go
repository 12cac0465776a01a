package acme

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// diskFullEnv tells TestNetnsDiskFull that it is the process with file systems of its own.
const diskFullEnv = "CULVERT_TEST_DISK_FULL"

// TestNetnsDiskFull fills the file system of the folder, a small one of its own that only a process of its own sees: no
// order is made, the certificate stays in use, a restart still serves it, and when there is room it is renewed.
func TestNetnsDiskFull(t *testing.T) {
	if os.Getenv(diskFullEnv) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestNetnsDiskFull$", "-test.count=1")
		cmd.Env = append(os.Environ(), diskFullEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS")) {
			t.Fatalf("as root, in a mount namespace of its own: %v\n%s", err, out)
		}
		return
	}
	inWorld(t, func(w *world) {
		if err := syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("none", w.dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Unmount(w.dir, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
		m := w.open()
		sleep(10 * time.Second)
		first := mustCert(t, m, alpha)
		filler := filepath.Join(w.dir, "filler")
		fill(t, filler)
		sleep(time.Until(first.NotAfter) - day)
		fault := wantFault(t, m, alpha, StepKeep, "no order is made", "no space left", "full")
		if !errors.Is(fault, syscall.ENOSPC) {
			t.Errorf("LastError = %v, want one that wraps ENOSPC", fault)
		}
		m.Close()
		m = w.open()
		defer m.Close()
		if !mustCert(t, m, alpha).Equal(first) {
			t.Error("the certificate is not the kept one")
		}
		sleep(time.Hour)
		if n := len(w.ca.ordered(alpha)); n != 1 {
			t.Errorf("%d orders, want none while the disk is full", n-1)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		sleep(12 * time.Hour)
		if mustCert(t, m, alpha).Equal(first) {
			t.Error("the certificate is not renewed though there is room")
		}
		checkModes(t, w.store())
	})
}

// fill writes a file until there is no room.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 512))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}
