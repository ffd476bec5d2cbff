//go:build profile

package main

import (
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof" // only with the tag profile, which no release has
	"os"
	"time"
)

// With the tag profile, for make bench and make profile, the process serves
// net/http/pprof on the address in COUNTERSIGN_PROFILE.
func init() {
	address := os.Getenv("COUNTERSIGN_PROFILE")
	if address == "" {
		return
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, "serving profiles:", err)
		os.Exit(1)
	}
	go (&http.Server{ReadHeaderTimeout: time.Minute}).Serve(l)
}
