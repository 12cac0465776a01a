//go:build !linux

package pki

import (
	"io/fs"
	"os"
)

// openKeyExcuse excuses nothing: the places where open modes are tolerated are only known on Linux.
func openKeyExcuse(*os.File, fs.FileInfo) string { return "" }
