// Package attack plays the attacks of SECURITY.md, "What is bounded", on gateways that run as processes of their
// own: a hostile peer at an exit, and a hostile hop before an entry. Its tests play each once, counted;
// `make attack` plays them at full speed beside a probe and writes docs/attacks.md.
package attack
