//go:build !linux

package capture

import (
	"os"
	"runtime"
)

// checkExposure says whether others can read the open file f. Mounts and owners are told apart on Linux
// only, and Windows has no such mode.
func checkExposure(f *os.File) (warning string, err error) {
	info, err := f.Stat()
	if err != nil || runtime.GOOS == "windows" {
		return "", err
	}
	return exposure{mode: info.Mode()}.judge(f.Name())
}
