package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests run the command as its callers do: as a process. TestMain turns this test
// binary into that command. A first run builds the control plane, for which go test's
// default time limit may be too short: use -timeout 30m.
func TestMain(m *testing.M) {
	if os.Getenv("CONTROLPLANE_TEST_COMMAND") != "" {
		os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

const audience = "https://agents.example.test/mcp"

func TestCluster(t *testing.T) {
	l := launch(t)

	t.Run("a deployment becomes available", func(t *testing.T) {
		l.kubectl(t, "create", "deployment", "web", "--image=web:1", "--replicas=2")
		l.kubectl(t, "wait", "--for=condition=Available", "deployment/web", "--timeout=30s")
		if got := l.kubectl(t, "get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}"); got != "2" {
			t.Errorf("available replicas: %s, want 2", got)
		}
	})

	t.Run("version", func(t *testing.T) {
		var version struct{ Major, Minor, GitVersion string }
		l.get(t, "/version", true, &version)
		mod, err := os.ReadFile("go.mod")
		if err != nil {
			t.Fatal(err)
		}
		want := regexp.MustCompile(`k8s.io/kubernetes (v\S+)`).FindStringSubmatch(string(mod))[1]
		if version.GitVersion != want || !strings.HasPrefix(want, "v"+version.Major+"."+version.Minor+".") {
			t.Errorf("the server is %+v, want %s", version, want)
		}
	})

	t.Run("logs", func(t *testing.T) {
		logs := l.kubectl(t, "logs", "deployment/web", "--timestamps")
		lines := strings.Split(strings.TrimSpace(logs), "\n")
		if len(lines) < 24 || !strings.Contains(logs, "msg=\"request\"") {
			t.Errorf("want a few dozen lines of a web service, have:\n%s", logs)
		}
		var last time.Time
		for _, line := range lines {
			stamp, _, _ := strings.Cut(line, " ")
			at, err := time.Parse(time.RFC3339Nano, stamp)
			if err != nil || !at.After(last) || at.After(time.Now()) {
				t.Errorf("timestamps should increase up to now: %q after %s (%v)", line, last, err)
			}
			last = at
		}
		if got := l.kubectl(t, "logs", "deployment/web", "--tail=3"); strings.Count(got, "\n") != 3 {
			t.Errorf("--tail=3 printed:\n%s", got)
		}
		if got := l.kubectl(t, "logs", "deployment/web", "--previous"); !strings.Contains(got, "connection refused") {
			t.Errorf("--previous printed:\n%s", got)
		}
	})

	t.Run("exec", func(t *testing.T) {
		if got := l.kubectl(t, "exec", "deployment/web", "--", "echo", "hi"); got != "hi\n" {
			t.Errorf("echo printed %q", got)
		}
		_, stderr, code := l.tryKubectl("", "exec", "deployment/web", "--", "sh", "-c", "echo bad >&2; exit 3")
		if code != 3 || !strings.HasPrefix(stderr, "bad\n") {
			t.Errorf("exit code %d, stderr %q; want 3 and bad", code, stderr)
		}
		if stdout, _, _ := l.tryKubectl("from here", "exec", "-i", "deployment/web", "--", "cat"); stdout != "from here" {
			t.Errorf("cat printed %q", stdout)
		}
	})

	// The cluster is for agents to act on. What they run in a pod must not run here.
	t.Run("exec runs nothing on this machine", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "made")
		for _, argv := range [][]string{{"touch", file}, {"/bin/touch", file}, {"/usr/bin/touch", file}, {"sh", "-c", "touch " + file}, {"sh", "-c", "echo x >" + file}} {
			l.tryKubectl("", append([]string{"exec", "deployment/web", "--"}, argv...)...)
			if exists(file) {
				t.Fatalf("%q ran on this machine", argv)
			}
		}
	})

	t.Run("tokens and OIDC discovery", func(t *testing.T) {
		token := l.kubectl(t, "create", "token", "default", "--audience", audience)
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
		if err != nil {
			t.Fatal(err)
		}
		var claims struct {
			Iss, Sub string
			Aud      []string
		}
		if err := json.Unmarshal(payload, &claims); err != nil {
			t.Fatal(err)
		}
		if claims.Iss != l.Issuer || claims.Sub != "system:serviceaccount:default:default" || len(claims.Aud) != 1 || claims.Aud[0] != audience {
			t.Errorf("claims: %s", payload)
		}

		var review struct {
			Status struct {
				Authenticated bool
				Audiences     []string
			}
		}
		l.do(t, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", true, http.Header{"Content-Type": {"application/json"}},
			`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":"`+strings.TrimSpace(token)+`","audiences":["`+audience+`"]}}`, &review)
		if !review.Status.Authenticated {
			t.Error("the API server does not accept a token for --audience")
		}

		var discovery struct {
			Issuer  string
			JwksURI string `json:"jwks_uri"`
		}
		l.get(t, "/.well-known/openid-configuration", false, &discovery)
		if discovery.Issuer != l.Issuer || discovery.JwksURI != l.Server+"/openid/v1/jwks" {
			t.Errorf("discovery: %+v", discovery)
		}
		var keys struct{ Keys []struct{ Kty, Alg string } }
		l.get(t, "/openid/v1/jwks", false, &keys)
		if len(keys.Keys) != 1 || keys.Keys[0].Alg != "RS256" {
			t.Errorf("keys: %+v", keys)
		}
	})

	t.Run("the audit log has the client's Audit-ID", func(t *testing.T) {
		const id = "0a1b2c3d-1111-4222-8333-444455556666"
		l.do(t, "GET", "/api/v1/namespaces/default/pods", true, http.Header{"Audit-ID": {id}}, "", nil)
		events, err := os.ReadFile(l.AuditLog)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(events) {
			var event struct {
				AuditID, Verb, Stage string
				User                 struct{ Username string }
			}
			if err := json.Unmarshal(line, &event); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			if event.AuditID == id && event.Verb == "list" && event.Stage == "ResponseComplete" && event.User.Username == "kubernetes-admin" {
				return
			}
		}
		t.Errorf("%s does not have %s", l.AuditLog, id)
	})

	t.Run("nobody else reads the credentials", func(t *testing.T) {
		for _, name := range []string{"kubeconfig", "tokens.csv", "service-account.key", "apiserver.key", "kwok.kubeconfig"} {
			info, err := os.Stat(filepath.Join(l.Dir, name))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v; want 0600", name, info, err)
			}
		}
	})

	t.Run("another API server", func(t *testing.T) {
		l.cmd.Process.Signal(syscall.SIGUSR1)
		if _, err := l.stdout.ReadBytes('\n'); err != nil {
			t.Fatalf("no second line of JSON: %v\n%s", err, l.stderr)
		}
		if now := children(t, l.cmd.Process.Pid); len(now) != len(l.children) || now["kube-apiserver"] == l.children["kube-apiserver"] {
			t.Errorf("there run %v, before %v", now, l.children)
		}
		if got := strings.TrimSpace(l.kubectl(t, "get", "deployment", "web", "-o", "name")); got != "deployment.apps/web" {
			t.Errorf("what was stored is %q", got)
		}
	})

	t.Run("the folder is in use", func(t *testing.T) {
		output, err := self("up", "--dir", l.Dir).CombinedOutput()
		if err == nil || !strings.Contains(string(output), "another control plane runs in it") {
			t.Errorf("a second start in %s: %v, %s", l.Dir, err, output)
		}
	})
}

// However a cluster ends, nothing of it is left running.
func TestEnd(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(l *launched)
		code int
		says string
	}{
		{"SIGTERM", func(l *launched) { l.cmd.Process.Signal(syscall.SIGTERM) }, 0, ""},
		{"SIGINT", func(l *launched) { l.cmd.Process.Signal(os.Interrupt) }, 0, ""},
		{"stdin closes", func(l *launched) { l.stdin.Close() }, 0, ""},
		{"a component dies", func(l *launched) { syscall.Kill(l.children["kube-scheduler"], syscall.SIGKILL) }, 1, "kube-scheduler ended by itself (signal: killed); the end of "},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := launch(t)
			test.end(l)
			err := l.cmd.Wait()
			if code := l.cmd.ProcessState.ExitCode(); code != test.code {
				t.Errorf("exit code %d (%v), want %d", code, err, test.code)
			}
			if !strings.Contains(l.stderr.String(), test.says) {
				t.Errorf("it said %q, want %q", l.stderr.String(), test.says)
			}
			l.checkGone(t, 0)
		})
	}
}

// The launcher may be killed without a chance to stop anything, as by a test's timeout.
func TestKilledLauncher(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends the children of a killed process")
	}
	l := launch(t)
	l.cmd.Process.Kill()
	l.cmd.Wait()
	l.checkGone(t, 30*time.Second)
}

// Ports are chosen before they are used, so somebody else may take one in between.
func TestPortTaken(t *testing.T) {
	bin, err := build(t.Context(), ".", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"etcd", "etcd peer", "kube-apiserver", "kwok"} {
		t.Run(name, func(t *testing.T) {
			taken, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer taken.Close()
			go func() {
				for {
					conn, err := taken.Accept()
					if err != nil {
						return
					}
					conn.Close()
				}
			}()

			attempts := 0
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var stdout bytes.Buffer
			err = up(ctx, options{bin: bin, dir: t.TempDir(), nodes: 1, freePorts: func(n int) ([]string, error) {
				attempts++
				ports, err := freePorts(n)
				if attempts == 1 {
					ports[i] = taken.Addr().String()
				}
				return ports, err
			}}, io.MultiWriter(&stdout, writer(func(p []byte) (int, error) { cancel(); return len(p), nil })))
			if err != nil || attempts != 2 || stdout.Len() == 0 {
				t.Errorf("%d attempts, printed %q, %v; want a second attempt that works", attempts, &stdout, err)
			}
		})
	}
}

// A folder that is not ours is left alone.
func TestForeignFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(file, []byte("years"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := up(t.Context(), options{dir: dir}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "the folder has other content") {
		t.Errorf("got %v", err)
	}
	if !exists(file) {
		t.Error("the file is gone")
	}
}

func TestUsage(t *testing.T) {
	for _, test := range []struct {
		args string
		code int
		says string
	}{
		{"", 2, "no command given"},
		{"down", 2, `unknown command "down"`},
		{"up", 2, "up needs --dir"},
		{"up --dir x y", 2, `unexpected argument "y"`},
		{"up --nodes -1 --dir x", 2, "--nodes cannot be negative"},
		{"up --audience a,b --dir x", 2, "without commas"},
		{"build --module ..", 1, "run in e2e/controlplane or name it with --module"},
		{"help", 0, ""},
		{"up --help", 0, "usage:"},
	} {
		var stderr bytes.Buffer
		code := run(strings.Fields(test.args), strings.NewReader(""), io.Discard, &stderr)
		if code != test.code || !strings.Contains(stderr.String(), test.says) {
			t.Errorf("controlplane %s: exit code %d, %q; want %d, %q", test.args, code, &stderr, test.code, test.says)
		}
	}
}

func TestShell(t *testing.T) {
	for _, test := range []struct {
		script, out, errOut string
		code                int
	}{
		{"echo a b; echo -n c", "a b\nc", "", 0},
		{"hostname && cat /etc/hostname", "web-1\nweb-1\n", "", 0},
		{"false && echo no; echo yes", "yes\n", "", 0},
		{"false; exit", "", "", 1},
		{"exit 7; echo no", "", "", 7},
		{"echo bad >&2", "", "bad\n", 0},
		{"seq 3", "1\n2\n3\n", "", 0},
		{"cat /etc/shadow", "", "cat: /etc/shadow: No such file or directory\n", 1},
		{"nmap", "", "exec: \"nmap\": executable file not found in $PATH (this container is simulated)\n", 127},
	} {
		var out, errOut bytes.Buffer
		s := &shell{in: strings.NewReader(""), out: &out, errOut: &errOut, pod: "web-1"}
		code := s.run(t.Context(), []string{"sh", "-c", test.script})
		if out.String() != test.out || errOut.String() != test.errOut || code != test.code {
			t.Errorf("%s: printed %q and %q, exit code %d; want %q, %q, %d", test.script, &out, &errOut, code, test.out, test.errOut, test.code)
		}
	}
}

// launched is a running controlplane command.
type launched struct {
	ready
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	stdout   *bufio.Reader
	stderr   *bytes.Buffer
	children map[string]int
	client   *http.Client
	token    string
}

// self is the command under test.
func self(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "CONTROLPLANE_TEST_COMMAND=1")
	return cmd
}

func launch(t *testing.T) *launched {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a control plane")
	}
	// Here, so that the progress of a first build can be seen.
	if _, err := build(t.Context(), ".", os.Stderr); err != nil {
		t.Fatal(err)
	}
	l := &launched{cmd: self("up", "--dir", t.TempDir(), "--stdin", "--audience", audience), stderr: new(bytes.Buffer)}
	l.cmd.Stderr = l.stderr
	var err error
	if l.stdin, err = l.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.stdin.Close()
		l.cmd.Wait()
	})
	l.stdout = bufio.NewReader(stdout)
	line, err := l.stdout.ReadBytes('\n')
	if err != nil {
		l.cmd.Wait()
		t.Fatalf("no line of JSON: %v\n%s", err, l.stderr)
	}
	t.Logf("ready after %s", time.Since(start).Round(10*time.Millisecond))
	if err := json.Unmarshal(line, &l.ready); err != nil {
		t.Fatal(err)
	}

	l.children = children(t, l.cmd.Process.Pid)
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"} {
		if l.children[name] == 0 {
			t.Fatalf("%s does not run, only %v", name, l.children)
		}
	}

	ca, err := os.ReadFile(l.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	l.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	kubeconfig, err := os.ReadFile(l.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	l.token = regexp.MustCompile(`token: "(\w+)"`).FindStringSubmatch(string(kubeconfig))[1]
	return l
}

func (l *launched) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, code := l.tryKubectl("", args...)
	if code != 0 {
		t.Fatalf("kubectl %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

func (l *launched) tryKubectl(stdin string, args ...string) (stdout, stderr string, code int) {
	cmd := exec.Command(l.Kubectl, args...)
	cmd.Env = []string{"KUBECONFIG=" + l.Kubeconfig, "HOME=" + l.Dir}
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return "", err.Error(), -1
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func (l *launched) get(t *testing.T, path string, asAdmin bool, out any) {
	t.Helper()
	l.do(t, "GET", path, asAdmin, http.Header{}, "", out)
}

func (l *launched) do(t *testing.T, method, path string, asAdmin bool, header http.Header, body string, out any) {
	t.Helper()
	request, err := http.NewRequest(method, l.Server+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header = header
	if asAdmin {
		request.Header.Set("Authorization", "Bearer "+l.token)
	}
	response, err := l.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, _ := io.ReadAll(response.Body)
	if response.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s: %s", method, path, response.Status, content)
	}
	if out != nil {
		if err := json.Unmarshal(content, out); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, content)
		}
	}
}

// checkGone waits no longer than given until all children are gone.
func (l *launched) checkGone(t *testing.T, wait time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		var left []string
		for name, pid := range l.children {
			if alive(pid) {
				left = append(left, name)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still running: %s", strings.Join(left, ", "))
		}
	}
}

// children returns the process ids of a process' children by the name of their binary.
func children(t *testing.T, parent int) map[string]int {
	t.Helper()
	output, err := exec.Command("ps", "-A", "-o", "pid=,ppid=,args=").Output()
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]int)
	for line := range strings.Lines(string(output)) {
		fields := strings.Fields(line)
		if len(fields) > 2 && fields[1] == strconv.Itoa(parent) {
			found[filepath.Base(fields[2])], _ = strconv.Atoi(fields[0])
		}
	}
	return found
}

// alive is false also for a process that has ended and only waits for its parent to look.
func alive(pid int) bool {
	state, _ := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return len(state) > 0 && state[0] != 'Z'
}

// writer is a function as an io.Writer.
type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
