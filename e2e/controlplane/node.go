package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// serveNodes starts what stands in for the kubelets, and returns its port. It passes logs
// on to kwok and answers exec itself.
//
// kwok can answer exec too, but by running the command on this machine as this user,
// asked over a port without authentication, which any local user and any web page can
// reach. These clusters are handed to AI agents; "rm -rf" in a simulated pod must not be
// one here. So kwok has no exec configured, and commands are simulated: see shell.go.
func (c *cluster) serveNodes(kwokAddress string) (port int, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("serving the nodes: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", serveExec(filepath.Join(c.dir, "pod.log")))
	mux.Handle("/", httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: kwokAddress}))

	c.nodeFailed = make(chan error, 1)
	c.nodeServer = &http.Server{
		Handler: mux,
		// Only HTTP/1.1 can be upgraded to the streams that exec needs.
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{c.credentials.cert}, NextProtos: []string{"http/1.1"}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	go func() {
		c.nodeFailed <- fmt.Errorf("serving the nodes: %w", c.nodeServer.ServeTLS(listener, "", ""))
	}()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// serveExec answers exec; podLog is the file that all pods' logs come from.
func serveExec(podLog string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { answerExec(w, r, podLog) }
}

func answerExec(w http.ResponseWriter, r *http.Request, podLog string) {
	streams, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	argv := r.URL.Query()["command"]
	if len(argv) == 0 {
		http.Error(w, "no command", http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, executor{namespace: r.PathValue("namespace"), log: podLog},
		r.PathValue("pod"), "", r.PathValue("container"), argv, streams,
		time.Hour, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

// executor runs simulated commands where a container runtime would run real ones.
type executor struct{ namespace, log string }

func (e executor) ExecInContainer(ctx context.Context, pod, _, container string, argv []string,
	in io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	// A stream that the client did not ask for is nil.
	s := &shell{in: strings.NewReader(""), out: io.Discard, errOut: io.Discard, pod: pod, namespace: e.namespace, container: container, log: e.log}
	if in != nil {
		s.in = in
	}
	if out != nil {
		s.out = out
	}
	if errOut != nil {
		s.errOut = errOut
	}
	if code := s.run(ctx, argv); code != 0 {
		return exitError(code)
	}
	return nil
}

// exitError is the exit code of a command, in the form that remotecommand looks for
// (k8s.io/utils/exec.ExitError).
type exitError int

func (e exitError) Error() string   { return fmt.Sprintf("exit status %d", int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }
