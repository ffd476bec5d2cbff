package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign/admin"
	"countersign/configs"
	"countersign/policy"
)

// TestMain is the program itself where a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("COUNTERSIGN_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

const decided = `{"v":1,"type":"tool.intent","op":"1","principal":{"username":"u"},"tool":{"name":"list_namespaces"},"actions":[{"cluster":"prod","verb":"list","resource":"v1/namespaces"}]}
{"v":1,"type":"policy.decided","op":"1","policy":{"decision":"allow","rules":["r"]}}
`

// A command that waits for its input ends by signals all the same.
func TestSecondSignal(t *testing.T) {
	in(t, map[string]string{"p/p.yaml": rulesOfTwo})
	program := exec.CommandContext(t.Context(), os.Args[0], "policy", "simulate", "--log", "-", "--policy", "p")
	program.Env = append(os.Environ(), "COUNTERSIGN_TEST_MAIN=1")
	stdin, err := program.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, decided); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || !strings.HasPrefix(line, "DIFFERENT") {
		t.Fatalf("got %q, %v", line, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- program.Wait() }()
	for range 50 {
		program.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err == nil {
				t.Error("it ended with success")
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Error("it does not heed SIGTERM")
	program.Process.Kill()
	<-ended
}

// The cases that are left are not decided once the first signal has come.
func TestCancelledTest(t *testing.T) {
	in(t, map[string]string{"p/p.yaml": rulesOfTwo, "p/a_test.yaml": casesOfTwo})
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("a signal came"))
	var out, errOut strings.Builder
	if code := run(ctx, []string{"policy", "test", "p"}, strings.NewReader(""), &out, &errOut); code != 1 || !strings.Contains(errOut.String(), "a signal came") || out.Len() > 0 {
		t.Errorf("exit %d, %s%s", code, &out, &errOut)
	}
}

// settingsOf is a configuration with a policy folder.
func settingsOf(folder string) string {
	return "data: data\nurl: https://countersign.example/mcp\nlisten: 127.0.0.1:0\npolicy: " + folder + "\ntls: {certFile: c, keyFile: k}\nclusters: [{name: local, kubeconfig: k}]\nissuers: [{url: https://idp.example}]\n"
}

// Whatever is said of a file, its folder is said as well.
func TestFolderIsNamed(t *testing.T) {
	in(t, map[string]string{
		"p/a.yaml": oneRule, "p/b.yaml": oneRule,
		"void/p.yaml": strings.Replace(oneRule, "rules: [", "rules: [{name: none, effect: deny}, ", 1),
		"config.yaml": settingsOf("void"),
	})
	for _, row := range []struct {
		words string
		want  string
	}{
		{"policy check p", "countersign: p/b.yaml:5: rule one: name is used already, at p/a.yaml:5\n"},
		{"policy check nowhere", "countersign: loading policy from nowhere: reading policy directory: no such file or directory\n"},
		{"policy check void/", "countersign: warning: void/p.yaml:5: rule one: has no effect: rule none denies all that it is about\n"},
		{"config check config.yaml", "countersign: warning: void/p.yaml:5: rule one: has no effect: rule none denies all that it is about\n"},
	} {
		_, errOut, _ := execute(strings.Fields(row.words)...)
		if !strings.Contains(errOut, row.want) {
			t.Errorf("%s: got %q; want %q", row.words, errOut, row.want)
		}
	}
}

// Status says how much is in force, and what is not.
func TestStatusText(t *testing.T) {
	in(t, map[string]string{"p/p.yaml": oneRule, "config.yaml": settingsOf("p"), "data/x": ""})
	listener, err := admin.Listen("data/admin.sock")
	if err != nil {
		t.Fatal(err)
	}
	var info atomic.Pointer[policy.Info]
	info.Store(&policy.Info{Rules: 12, Limits: 2})
	server := (&admin.Server{Log: slog.New(slog.DiscardHandler), Status: func() admin.Status {
		return admin.Status{Policy: admin.PolicyStatus{Info: *info.Load()}}
	}}).HTTP()
	go server.Serve(listener)
	defer server.Close()
	if out := succeed(t, "status", "-c", "config.yaml"); !strings.Contains(out, "12 rules, 2 limits; guards off: none\n") {
		t.Errorf("got %s", out)
	}
	info.Store(&policy.Info{Rules: 12, Limits: 2, GuardsOff: []string{"guard:loop", "guard:proxy"}})
	if out := succeed(t, "status", "-c", "config.yaml"); !strings.Contains(out, "12 rules, 2 limits; guards off: guard:loop guard:proxy\n") {
		t.Errorf("got %s", out)
	}
	if out := succeed(t, "status", "-c", "config.yaml", "-o", "json"); !strings.Contains(out, `"guardsOff"`) || !strings.Contains(out, `"info"`) {
		t.Errorf("got %s", out)
	}
}

const kubeconfigOfNobody = "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: u, user: {}}]}"

// config check says what would keep a server from starting here: files that are not
// there, that everybody can read, or that do not fit together.
func TestConfigCheckLooksAtFiles(t *testing.T) {
	in(t, map[string]string{
		"p/p.yaml": oneRule, "k": kubeconfigOfNobody,
		"config.yaml": strings.Replace(settingsOf("p"), "url: https://idp.example}", "url: https://idp.example, caFile: ca}", 1),
	})
	files := configs.TLS{CertFile: "c", KeyFile: "k2"}
	writePair(t, configs.TLS{CertFile: "ca", KeyFile: "unused"}, 1)
	writePair(t, files, 1)
	if err := os.Rename("k2", "key"); err != nil {
		t.Fatal(err)
	}
	if err := rewrite("config.yaml", "keyFile: k}", "keyFile: key}"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod("k", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		do   func() error
		want string // empty when a server would start
	}{
		{"all is well", func() error { return nil }, ""},
		{"a kubeconfig for everybody", func() error { return os.Chmod("k", 0o644) }, "preparing cluster local: k, which may be read by everybody or written by a group (mode 0644): chmod 600 it"},
		{"no kubeconfig", func() error { return os.Remove("k") }, "preparing cluster local: stat k: no such file or directory"},
		{"another's key", func() error { writePair(t, configs.TLS{CertFile: "unused", KeyFile: "key"}, 2); return nil }, "c with key: tls: private key does not match public key"},
		{"no certificate", func() error { return os.Remove("c") }, "reading the TLS certificate (tls.certFile and tls.keyFile): open c: no such file or directory"},
		{"no certificate of the issuer's", func() error { return os.Remove("ca") }, "preparing issuer https://idp.example: open ca: no such file or directory"},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		_, errOut, code := execute("config", "check", "config.yaml")
		if code != 0 || !strings.Contains(errOut, step.want) || (step.want == "") == strings.Contains(errOut, "would not start") {
			t.Errorf("%s: exit %d, %s", step.name, code, errOut)
		}
	}
}

// A server that cannot have its address says what to do, and has begun nothing.
func TestAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	in(t, map[string]string{"p/p.yaml": oneRule, "k": kubeconfigOfNobody, "config.yaml": settingsOf("p")})
	if err := os.Chmod("k", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := rewrite("config.yaml", "tls: {certFile: c, keyFile: k}\n", ""); err != nil {
		t.Fatal(err)
	}
	if err := rewrite("config.yaml", "127.0.0.1:0", taken.Addr().String()); err != nil {
		t.Fatal(err)
	}
	_, errOut, code := execute("serve", "-c", "config.yaml")
	if code != 1 || !strings.Contains(errOut, "address already in use; give listen an address") {
		t.Errorf("exit %d, %s", code, errOut)
	}
	if _, err := os.Stat("data"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a store was made: %v", err)
	}
}

func rewrite(path, from, to string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strings.Replace(string(text), from, to, 1)), 0o600)
}
