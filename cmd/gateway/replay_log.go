package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
)

// recordKey is a key of a flow's record that a replay reads.
type recordKey uint8

const (
	keyTime recordKey = iota
	keyMsg
	keyListener
	keySrc
	keyPeer
	keyHost
	keyDst
	keyBy
	keyRule
	keyReason
	keyDecided
	keySelf
	keyWorkload
	keyOpen
	keyAddrs
	keyPort
	keyLocal
	keyUnresolved
	keySNI
	keyRemote
	keyToken
	keyBadToken
	keyMethod
	keyPath
	keyAuthority
	numRecordKeys
)

// recordKeyOf returns the key of that name.
func recordKeyOf(name []byte) (recordKey, bool) {
	switch string(name) {
	case "time":
		return keyTime, true
	case "msg":
		return keyMsg, true
	case "listener":
		return keyListener, true
	case "src":
		return keySrc, true
	case "peer":
		return keyPeer, true
	case "host":
		return keyHost, true
	case "dst":
		return keyDst, true
	case "by":
		return keyBy, true
	case "rule":
		return keyRule, true
	case "reason":
		return keyReason, true
	case "decided":
		return keyDecided, true
	case "self":
		return keySelf, true
	case "workload":
		return keyWorkload, true
	case "open":
		return keyOpen, true
	case "addrs":
		return keyAddrs, true
	case "port":
		return keyPort, true
	case "local":
		return keyLocal, true
	case "unresolved":
		return keyUnresolved, true
	case "sni":
		return keySNI, true
	case "remote":
		return keyRemote, true
	case "token":
		return keyToken, true
	case "bad_token":
		return keyBadToken, true
	case "method":
		return keyMethod, true
	case "path":
		return keyPath, true
	case "authority":
		return keyAuthority, true
	}
	return 0, false
}

// flowRecord is what a replay reads of one record. Values are parts of the line, and are good until the next is read.
type flowRecord struct {
	values [numRecordKeys][]byte
	seen   uint32 // a bit for each key
}

func (r *flowRecord) get(k recordKey) []byte { return r.values[k] }
func (r *flowRecord) has(k recordKey) bool   { return r.seen&(1<<k) != 0 }

// Why a record cannot be replayed. The texts have nothing of the log in them, so that there are few.
var (
	errRecordCut    = errors.New("the line is cut: it was not written to its end")
	errRecordTwice  = errors.New("a key is there twice")
	errRecordForm   = errors.New("the line has not the form in which a gateway writes")
	errRecordLength = fmt.Errorf("the line is longer than %s", Size(maxRecordBytes))
)

// set notes a value. A key that is there twice means two things to two readers.
func (r *flowRecord) set(k recordKey, value []byte) error {
	if r.has(k) {
		return errRecordTwice
	}
	r.seen |= 1 << k
	r.values[k] = value
	return nil
}

// maxRecordBytes bounds a line that is read; records are below 8 KiB, with the longest of names and identities.
const maxRecordBytes = 64 << 10

// recordReader finds the records of flows in a log of any length, and holds one line of it.
type recordReader struct {
	r      *bufio.Reader
	record flowRecord
	other  int // lines that are no record of a flow
}

// newRecordReader reads a log, which may be compressed by gzip.
func newRecordReader(src io.Reader) (*recordReader, error) {
	r := bufio.NewReaderSize(src, maxRecordBytes)
	if magic, err := r.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b { // RFC 1952, section 2.3.1
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		r = bufio.NewReaderSize(z, maxRecordBytes)
	}
	return &recordReader{r: r}, nil
}

// next returns the next record. problem tells why there is one that cannot be read; err is that of the log, or io.EOF.
func (d *recordReader) next() (r *flowRecord, problem, err error) {
	for {
		line, err := d.r.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		isRecord := looksLikeRecord(line)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = d.r.ReadSlice('\n')
		}
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return nil, nil, err
		case len(line) == 0:
			return nil, nil, io.EOF
		case isRecord && long:
			return nil, errRecordLength, nil
		case isRecord:
			d.record = flowRecord{}
			problem := d.record.parse(line)
			if problem != nil {
				return nil, problem, nil
			}
			if string(d.record.get(keyMsg)) == "flow" {
				return &d.record, nil, nil
			}
		}
		d.other++
	}
}

// looksLikeRecord tells most lines apart without a closer look.
func looksLikeRecord(line []byte) bool {
	if len(line) > 0 && line[0] == '{' {
		return bytes.Contains(line, []byte(`"msg":"flow"`)) || bytes.Contains(line, []byte(`"msg": "flow"`))
	}
	return bytes.HasPrefix(line, []byte("time=")) && bytes.Contains(line, []byte(" msg=flow "))
}

// parse reads a line in either form of log.
func (r *flowRecord) parse(line []byte) error {
	if line[0] == '{' {
		return r.parseJSON(line)
	}
	text, ended := bytes.CutSuffix(line, []byte("\n"))
	if !ended {
		return errRecordCut // what would be missing cannot be seen
	}
	return r.parseText(bytes.TrimSuffix(text, []byte("\r")))
}

// parseText reads what slog's TextHandler writes: key=value with single spaces between, values quoted as in Go where they
// need it.
func (r *flowRecord) parseText(line []byte) error {
	for len(line) > 0 {
		key, rest, ok := bytes.Cut(line, []byte("="))
		if !ok || len(key) == 0 || bytes.ContainsAny(key, " \"") {
			return errRecordForm
		}
		var value []byte
		if len(rest) > 0 && rest[0] == '"' {
			quoted, err := strconv.QuotedPrefix(string(rest))
			if err != nil {
				return errRecordCut
			}
			text, err := strconv.Unquote(quoted)
			if err != nil {
				return errRecordForm
			}
			value, rest = []byte(text), rest[len(quoted):]
		} else {
			end := bytes.IndexByte(rest, ' ')
			if end < 0 {
				end = len(rest)
			}
			value, rest = rest[:end], rest[end:]
			if len(value) == 0 || bytes.ContainsAny(value, "=\"") {
				return errRecordForm
			}
		}
		if len(rest) > 0 {
			if rest[0] != ' ' || len(rest) == 1 {
				return errRecordForm
			}
			rest = rest[1:]
		}
		if k, known := recordKeyOf(key); known {
			if err := r.set(k, value); err != nil {
				return err
			}
		}
		line = rest
	}
	return nil
}

// parseJSON reads what slog's JSONHandler writes, and what passes on its objects may have done to the space between: an
// object in which no value has parts. It is much faster than encoding/json.
func (r *flowRecord) parseJSON(line []byte) error {
	s := jsonScanner{rest: line}
	if !s.take('{') {
		return errRecordForm
	}
	for more := true; more; more = s.take(',') {
		name, err := s.text()
		if err != nil {
			return err
		}
		if !s.take(':') {
			return s.wrong()
		}
		value, err := s.value()
		if err != nil {
			return err
		}
		if k, known := recordKeyOf(name); known {
			if err := r.set(k, value); err != nil {
				return err
			}
		}
	}
	if !s.take('}') {
		return s.wrong()
	}
	if s.space(); len(s.rest) > 0 {
		return errRecordForm
	}
	return nil
}

// jsonScanner reads parts of an object.
type jsonScanner struct{ rest []byte }

// space passes over space, which the lines of slog have none of.
func (s *jsonScanner) space() {
	if len(s.rest) > 0 && s.rest[0] <= ' ' {
		s.rest = bytes.TrimLeft(s.rest, " \t\r\n")
	}
}

// take takes one character behind any space.
func (s *jsonScanner) take(c byte) bool {
	s.space()
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// wrong tells a line that ends too soon from one that has something else.
func (s *jsonScanner) wrong() error {
	if len(s.rest) == 0 {
		return errRecordCut
	}
	return errRecordForm
}

// text reads a string.
func (s *jsonScanner) text() ([]byte, error) {
	if !s.take('"') {
		return nil, s.wrong()
	}
	escaped := false
	for i := 0; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '\\':
			escaped = true
			i++ // whatever comes is no end
		case c == '"':
			value := s.rest[:i]
			s.rest = s.rest[i+1:]
			if !escaped {
				return value, nil
			}
			var text string
			if err := json.Unmarshal([]byte(`"`+string(value)+`"`), &text); err != nil {
				return nil, errRecordForm
			}
			return []byte(text), nil
		case c == '\n':
			return nil, errRecordCut
		case c < ' ':
			return nil, errRecordForm
		}
	}
	return nil, errRecordCut
}

// value reads a string, of which the quotes are left out, or a number or word as it stands.
func (s *jsonScanner) value() ([]byte, error) {
	if s.space(); len(s.rest) > 0 && s.rest[0] == '"' {
		return s.text()
	}
	end := bytes.IndexAny(s.rest, ",} \t\r\n")
	if end < 0 {
		return nil, errRecordCut
	}
	value := s.rest[:end]
	if !json.Valid(value) || value[0] == '[' || value[0] == '{' {
		return nil, errRecordForm
	}
	s.rest = s.rest[end:]
	return value, nil
}

// eachLog calls do with each of the logs, or with in where none is named.
func eachLog(in io.Reader, logs []string, do func(name string, r io.Reader)) error {
	if len(logs) == 0 {
		do("standard input", in)
	}
	for _, name := range logs {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("%s: cannot be read: %w; name logs of gateways, or give one on standard input", name, rootCause(err))
		}
		do(name, f)
		_ = f.Close() // nothing was written
	}
	return nil
}
