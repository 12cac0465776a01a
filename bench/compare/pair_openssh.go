package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"

	"os/user"
)

// sshRunDir is where sshd, started by root, locks its unprivileged part up; Debian makes it when it starts the service.
const sshRunDir = "/run/sshd"

func missingOpenSSH(s *site) string {
	for _, name := range []string{"ssh", "ssh-keygen", "sshd"} {
		if _, err := s.tool(name); err != nil {
			return err.Error() + ": install openssh-client and openssh-server"
		}
	}
	return ""
}

// startOpenSSH runs an sshd of its own on a high port, and ssh -N -L against it, with P-256 keys made for the run
// and AES-128-GCM as the others have.
func startOpenSSH(s *site, r *running, between func(string) (string, error)) error {
	exit, entry, err := twoAddrs()
	if err != nil {
		return err
	}
	me, err := user.Current()
	if err != nil {
		return err
	}
	if err := s.sshFiles(exit); err != nil {
		return err
	}
	sshd, err := s.tool("sshd") // sshd starts itself anew for every connection and wants to know its whole path
	if err != nil {
		return err
	}
	if err := r.add(s, "OpenSSH exit", sshd, "-D", "-e", "-f", s.path("sshd_config")); err != nil {
		return err
	}
	if err := accepts(r, exit); err != nil { // ssh does not try again
		return err
	}
	via, err := between(exit)
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(via)
	if err != nil {
		return err
	}
	r.entry = entry
	return r.add(s, "OpenSSH entry", "ssh", "-N", "-F", "none", "-i", s.path("ssh-entry"), "-p", port,
		"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "ExitOnForwardFailure=yes",
		"-o", "UserKnownHostsFile="+s.path("ssh-hosts"), "-o", "GlobalKnownHostsFile=none", "-o", "HostKeyAlias=exit",
		"-o", "Ciphers="+sshCipher, "-L", entry+":"+s.target.Addr(), me.Username+"@"+host)
}

const sshCipher = "aes128-gcm@openssh.com"

// sshFiles makes keys, once, and the configuration of an sshd at addr.
func (s *site) sshFiles(addr string) error {
	for _, who := range []string{"ssh-entry", "ssh-exit"} {
		if _, err := os.Stat(s.path(who)); err == nil {
			continue
		}
		keygen := exec.Command("ssh-keygen", "-q", "-t", "ecdsa", "-b", "256", "-N", "", "-C", who, "-f", s.path(who))
		if out, err := keygen.CombinedOutput(); err != nil {
			return fmt.Errorf("ssh-keygen: %w: %s", err, bytes.TrimSpace(out))
		}
	}
	host, err := os.ReadFile(s.path("ssh-exit.pub"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.path("ssh-hosts"), append([]byte("exit "), host...), 0o600); err != nil {
		return err
	}
	if os.Getuid() == 0 {
		if err := os.MkdirAll(sshRunDir, 0o755); err != nil {
			return err
		}
	}
	ip, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	return os.WriteFile(s.path("sshd_config"), []byte(strings.Join([]string{
		"ListenAddress " + ip, "Port " + port, "PidFile none",
		"HostKey " + s.path("ssh-exit"), "AuthorizedKeysFile " + s.path("ssh-entry.pub"),
		"PermitRootLogin prohibit-password", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
		"StrictModes no", "UsePAM no", "LogLevel ERROR", "Ciphers " + sshCipher,
		"AllowTcpForwarding local", "PermitOpen " + s.target.Addr(), "",
	}, "\n")), 0o600)
}
