package acme

const diskFullEnv = "CULVERT_ACME_DISK_FULL"

func diskFullProcess(string) int { return 2 }
