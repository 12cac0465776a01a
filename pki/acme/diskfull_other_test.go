//go:build !linux

package acme

// diskFullEnv and diskFullProcess are those of diskfull_linux_test.go.
const diskFullEnv = "CULVERT_ACME_DISK_FULL"

func diskFullProcess(string) int { return 2 }
