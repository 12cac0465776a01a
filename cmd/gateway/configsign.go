package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Sign configurations and policies, so that no others are taken",
		Long: `Sign configurations and policies. A gateway that is run with --config-key takes no others, at
its start and at each reload: one that nobody has signed, or that was altered, is refused and
logged, and what runs goes on.

  gateway config key                                   config.key and config.pub, once
  gateway config sign --key config.key -c gw.yaml      gw.yaml.sig, and one for each policy
  gateway run -c gw.yaml --config-key config.pub`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(configKeyCommand(), configSignCommand())
	return cmd
}

func configKeyCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make a key that signs configurations, and the public key for the hosts",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return failed(makeConfigKey(cmd.OutOrStdout(), out))
		},
	}
	cmd.Flags().StringVar(&out, "out", "config", "write PREFIX.key and PREFIX.pub, as `PREFIX`")
	return cmd
}

// makeConfigKey writes a new key, never over one that is there.
func makeConfigKey(w io.Writer, out string) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	open, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	for _, file := range []string{out + ".key", out + ".pub"} {
		if _, err := os.Lstat(file); err == nil {
			return fmt.Errorf("%s is there already; remove it, or choose another name with --out PREFIX", file)
		}
	}
	for _, one := range []struct {
		file string
		mode os.FileMode
		pem  pem.Block
	}{{out + ".key", 0o600, pem.Block{Type: "PRIVATE KEY", Bytes: secret}}, {out + ".pub", 0o644, pem.Block{Type: "PUBLIC KEY", Bytes: open}}} {
		f, err := os.OpenFile(one.file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, one.mode)
		if err != nil {
			return err
		}
		if err := errors.Join(pem.Encode(f, &one.pem), f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(w, "made a key that signs configurations\n  %s.key  keep it where you sign, and nowhere else\n  %[1]s.pub  for every host: gateway run -c FILE --config-key %[1]s.pub\n", out)
	return err
}

func configSignCommand() *cobra.Command {
	var key, config string
	cmd := &cobra.Command{
		Use:   "sign --key KEY [-c CONFIG] [FILE...]",
		Short: "Sign a configuration and the policies that it names, or single files",
		Long: `Sign files: FILE.sig says what FILE is called, what is in it and when it was signed. With -c it is
the configuration and every policy file that it names; a configuration that has a fault is not
signed. Files that were signed are put in place together with their signatures.

A running gateway takes no file that was signed before the one that it runs. To go back, sign
the old file again.`,
		RunE: func(cmd *cobra.Command, files []string) error {
			switch {
			case key == "":
				return errors.New("--key is missing; it should be the private key that `gateway config key` has made, such as --key config.key")
			case config == "" && len(files) == 0:
				return errors.New("there is nothing to sign; give -c CONFIG for it and its policies, or FILEs")
			}
			private, err := readSigningKey(key)
			if err != nil {
				return fmt.Errorf("--key: %w", err)
			}
			texts, err := readToSign(config, files)
			if err != nil {
				return err
			}
			return failed(signAll(cmd.OutOrStdout(), private, texts))
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "private `KEY`, as `gateway config key` makes it")
	cmd.Flags().StringVarP(&config, "config", "c", "", "configuration `FILE`, to be signed with the policies that it names")
	return cmd
}

// readSigningKey reads a private key that nobody else can read.
func readSigningKey(file string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", file, rootCause(err))
	}
	if info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows" { // which has no such bits
		return nil, fmt.Errorf("%s: others than its owner can use it (mode %04o); run: chmod 600 %[1]s", file, info.Mode().Perm())
	}
	text, err := readBounded(file)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", file, rootCause(err))
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		return nil, fmt.Errorf("%s is no private key in PEM; name the one that `gateway config key` has made", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := key.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("%s is no key of Ed25519; name the one that `gateway config key` has made", file)
	}
	return private, nil
}

// readToSign reads each file once: what is checked here is what is signed.
func readToSign(config string, files []string) (map[string][]byte, error) {
	texts := make(map[string][]byte)
	read := func(file string) ([]byte, error) {
		text, err := readBounded(file)
		if err == nil {
			texts[file] = text
		}
		return text, err
	}
	if config != "" {
		cfg, p, f := readConfigBy(config, read)
		validate(cfg, p, f)
		checkPolicies(cfg, f)
		if err := f.err(); err != nil {
			return nil, err
		}
	}
	wrong := new(faults)
	for _, file := range files {
		if _, err := read(file); err != nil {
			wrong.list = append(wrong.list, fault{file: file, what: fmt.Sprintf("cannot be read: %v", rootCause(err))})
		}
	}
	return texts, wrong.err()
}

// signAll writes the signatures.
func signAll(w io.Writer, key ed25519.PrivateKey, texts map[string][]byte) error {
	now := time.Now().UTC()
	for _, file := range slices.Sorted(maps.Keys(texts)) {
		s := signature{file: filepath.Base(file), at: now, sum: sha256.Sum256(texts[file])}
		// A clock that was set back must not make the new signature an older one.
		if before, err := readSignature(file + signatureSuffix); err == nil {
			old, err := parseSignature(before, []ed25519.PublicKey{key.Public().(ed25519.PublicKey)})
			if err == nil && !s.at.After(old.at) {
				s.at = old.at.Add(time.Nanosecond)
			}
		}
		if err := writeSignature(file+signatureSuffix, s.sign(key)); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "signed %s: %s%s\n", file, file, signatureSuffix); err != nil {
			return err
		}
	}
	return nil
}

// writeSignature puts a signature in place in one step, readable by all.
func writeSignature(file string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// signed returns what reads the files of the configuration: with --config-key only such as are signed. running are those
// of the configuration that runs, nil if none does.
func (r *runFlags) signed() (*signedFiles, error) {
	if !r.wantsSigned() {
		return nil, nil
	}
	if r.configKeys == nil { // once: a key that is changed later counts at the next start
		keys, err := readConfigKeys(r.configKey)
		if err != nil {
			return nil, err
		}
		r.configKeys = keys
	}
	return newSignedFiles(r.configKeys, r.running), nil
}

// wantsSigned reports whether --config-key is given: also as "", which is no file and no way around it.
func (r *runFlags) wantsSigned() bool { return r.changed != nil && r.changed("config-key") }

// readFile reads the configuration that the flags name. Where its keys cannot be had nothing is read.
func (r *runFlags) readFile() (*Config, *places, *faults) {
	signed, err := r.signed()
	switch {
	case err != nil:
		return new(Config), newPlaces(r.file), &faults{broken: true, list: []fault{{flag: "--config-key", what: err.Error()}}}
	case signed == nil:
		return readConfig(r.file)
	}
	cfg, p, f := readConfigBy(r.file, signed.read)
	cfg.signed = signed
	return cfg, p, f
}

// unreadable is what is wrong with a file that cannot be read, or is refused for its signature.
func unreadable(err error, mend string) string {
	var refused *signatureError
	if errors.As(err, &refused) {
		return refused.Error()
	}
	return fmt.Sprintf("cannot be read: %v%s", rootCause(err), mend)
}

// logSigned says what runs, so that it can be compared with what was signed.
func logSigned(log *slog.Logger, cfg *Config) {
	if cfg.signed == nil {
		return
	}
	for _, file := range slices.Sorted(maps.Keys(cfg.signed.seen)) {
		log.Info("file is signed", "file", file, "signed", cfg.signed.seen[file].at)
	}
}
