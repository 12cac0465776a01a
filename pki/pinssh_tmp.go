package pki

import "bytes"

// pinSSH tells of the first line that is neither empty nor a comment.
func (t *trust) pinSSH(in *input, text []byte) error {
	n := 0
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		n++
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return in.fail(BadFormat, nil, "write key:NAME, as `gateway cert show` prints it", "line %d is no key", n)
		}
	}
	return nil
}
