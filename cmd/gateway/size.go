package main

import (
	"fmt"
	"strconv"
	"strings"
)

// Size is a number of bytes, written as in `512MiB`, `2GiB` or `1000000`. The units are powers of
// 1024; `M` and `MB` mean the same as `MiB`.
type Size int64

const sizeWanted = "a size such as 512MiB or 2GiB"

// UnmarshalText parses a size; it refuses signs, fractions and unknown units.
func (s *Size) UnmarshalText(text []byte) error {
	str := strings.TrimSpace(string(text))
	digits := strings.TrimRight(str, "KMGTiBkbgmt ")
	n, err := strconv.ParseUint(digits, 10, 62)
	if err != nil {
		return fmt.Errorf("%q is not %s", str, sizeWanted)
	}
	unit := strings.ToUpper(strings.TrimSpace(str[len(digits):]))
	unit = strings.TrimSuffix(strings.TrimSuffix(unit, "B"), "I")
	shift, ok := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[unit]
	if !ok || n > 1<<62>>shift {
		return fmt.Errorf("%q is not %s", str, sizeWanted)
	}
	*s = Size(n << shift)
	return nil
}

// MarshalText renders the size with the largest unit that keeps it whole.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String is what UnmarshalText takes.
func (s Size) String() string {
	for _, u := range []struct {
		shift uint
		name  string
	}{{40, "TiB"}, {30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if s != 0 && s&(1<<u.shift-1) == 0 {
			return strconv.FormatInt(int64(s>>u.shift), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Set and Type make a Size a command line flag.
func (s *Size) Set(text string) error { return s.UnmarshalText([]byte(text)) }

// Type is the word for the value in the help text.
func (s *Size) Type() string { return "size" }
