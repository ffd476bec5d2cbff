package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign/admin"
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
		if !strings.HasSuffix(errOut, row.want) {
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
