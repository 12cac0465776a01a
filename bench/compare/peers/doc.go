// Package peers holds the proxies written in Go that Culvert is compared with: a relay with a TLS connection for
// every flow, and pairs whose flows are streams of x/net/http2 and of grpc-go. They are as short as somebody
// would write them who knows the library and its settings, carry half-close, and do nothing else: no policy, no
// records, no limits.
package peers
