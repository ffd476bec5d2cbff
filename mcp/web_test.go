package mcp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	mcpgo "github.com/mark3labs/mcp-go/mcp"

	"countersign/audit"
)

// An answer may take as long as it likes, in both versions of HTTP; what comes in
// and what goes out may not.
func TestNoDeadlineCutsACall(t *testing.T) {
	const body, chunk = 25 * time.Millisecond, 25 * time.Millisecond
	for _, version := range []int{1, 2} {
		for _, method := range []string{http.MethodPost, http.MethodGet} {
			server := httptest.NewUnstartedServer(timed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				for range 3 {
					fmt.Fprintln(w, "still here")
					w.(http.Flusher).Flush()
					select {
					case <-time.After(2 * (body + chunk)):
					case <-r.Context().Done():
						t.Errorf("HTTP/%d %s: the call was cut: %v", version, method, r.Context().Err())
					}
				}
				fmt.Fprintln(w, "done")
			}), body, chunk))
			server.EnableHTTP2 = version == 2
			server.StartTLS()
			req, err := http.NewRequestWithContext(t.Context(), method, server.URL, strings.NewReader("hello"))
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // on the same connection
				resp, err := server.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				answer, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.ProtoMajor != version || !strings.HasSuffix(string(answer), "done\n") {
					t.Errorf("HTTP/%d %s: %q, %v", version, method, answer, err)
				}
				if req.GetBody != nil {
					req.Body, _ = req.GetBody()
				}
			}
			server.Close()
		}
	}
}

// Who takes an answer a byte at a time, or sends a head or a body so, or not at all,
// is not waited for, and nobody else waits meanwhile.
func TestSlowClients(t *testing.T) {
	const within = 200 * time.Millisecond
	f := newFront(t)
	guarded, wrote, session := f.Handler(), make(chan error, 1), f.initialize("bot", "2025-11-25")
	server := httptest.NewUnstartedServer(nil)
	server.Config = Web(nil)
	server.Config.ReadHeaderTimeout = within
	server.Config.Handler = timed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/mcp" {
			guarded.ServeHTTP(w, r)
			return
		}
		piece := bytes.Repeat([]byte("x"), 1<<20)
		for range 100 {
			if _, err := w.Write(piece); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- nil
	}), within, within)
	server.Start()
	defer server.Close()
	const post = "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer bot\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
	for _, row := range []struct {
		name, request string
		drip          bool // a byte at a time, or none at all
		want          string
	}{
		{"a slow reader", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", true, ""},
		{"a reader that reads nothing", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", false, ""},
		{"a slow head", "POST /mcp HTTP/1.1\r\nX-Long: ", true, "hang up"},
		{"half a head", "POST /mcp HTTP/1.1\r\nX-Long: ", false, "hang up"},
		{"a slow body", post, true, "HTTP/1.1 408"},
		{"half a body", post, false, "HTTP/1.1 408"},
	} {
		t.Run(row.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprint(conn, row.request)
			over := make(chan struct{})
			defer close(over)
			if row.drip {
				go func() {
					tick := time.NewTicker(5 * time.Millisecond)
					defer tick.Stop()
					for one := make([]byte, 1); ; {
						select {
						case <-tick.C:
						case <-over:
							return
						}
						if row.want == "" {
							conn.Read(one)
						} else {
							conn.Write([]byte(" "))
						}
					}
				}()
			}
			if r := f.do(http.MethodPost, server.URL+"/mcp", "bot", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, headerSession, session); r.status != http.StatusOK {
				t.Errorf("another client meanwhile: %+v", r)
			}
			conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			switch row.want {
			case "":
				select {
				case err := <-wrote:
					if err == nil {
						t.Error("all was written to nobody")
					}
				case <-time.After(20 * time.Second):
					t.Error("it holds the server up")
				}
			case "hang up":
				if answer, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) || strings.HasPrefix(string(answer), "HTTP/1.1 200") {
					t.Errorf("%s %v", answer, err)
				}
			default:
				if line, err := bufio.NewReader(conn).ReadString('\n'); !strings.HasPrefix(line, row.want) {
					t.Errorf("%s %v", line, err)
				}
			}
		})
	}
	if refused := f.store.of(audit.CallRefused); len(refused) != 2 || !strings.Contains(refused[0].Error.Message, "did not arrive within") {
		t.Errorf("on record: %+v", refused)
	}
}

// However many connections are opened on which nothing is asked, a client that
// asks something is answered, and one that waits for its answer keeps its place.
func TestHalfOpen(t *testing.T) {
	const most = 50
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wrapped := Listener(listener).(*door)
	wrapped.most = most
	began, finish := make(chan struct{}), make(chan struct{})
	web := Web(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			close(began)
			<-finish
		}
		fmt.Fprint(w, "answered")
	}))
	go web.Serve(wrapped)
	defer web.Close()
	get := func(path string) string {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + listener.Addr().String() + path)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		answer, _ := io.ReadAll(resp.Body)
		return string(answer)
	}
	waiting := make(chan string, 1)
	go func() { waiting <- get("/wait") }()
	<-began
	for i := range 10 * most {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			fmt.Fprint(conn, "POST /mcp HTTP/1.1\r\nHost: a\r\n") // and no more
		}
		if i%most == 0 {
			if got := get("/"); got != "answered" {
				t.Errorf("after %d: %s", i, got)
			}
		}
	}
	wrapped.mu.Lock()
	if wrapped.open > most || wrapped.waiting.Len() > most {
		t.Errorf("%d connections are open, %d wait", wrapped.open, wrapped.waiting.Len())
	}
	wrapped.mu.Unlock()
	close(finish)
	if got := <-waiting; got != "answered" {
		t.Errorf("the one that waited: %s", got)
	}
}

// A request's head is bounded: no token is that long.
func TestHeaders(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.Config = Web(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it is served") }))
	server.Start()
	defer server.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.Repeat("x", 2*maxHeaders))
	if resp, err := http.DefaultClient.Do(req); err == nil { // else the server hung up in the middle
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%d", resp.StatusCode)
		}
	}
}

// mcp-go loses a notification that it still holds when the answer comes, and sends
// all of them at the end where the writer cannot flush. Here each arrives, the last
// one too, and while the call still runs.
func TestProgressArrives(t *testing.T) {
	const calls = 100
	heard, f := make(chan struct{}), newFront(t, func(f *front) {})
	f.mcp.AddTool(mcpgo.NewTool("probe"), func(ctx context.Context, req mcpgo.CallToolRequest) (*mcpgo.CallToolResult, error) {
		told := f.progress(ctx, req)
		told.tell("first")
		select {
		case <-heard: // the client has read it
		case <-time.After(10 * time.Second):
			t.Error("the first progress does not arrive before the answer")
		}
		told.tell("last")
		told.settle(ctx)
		return mcpgo.NewToolResultText("over"), nil
	})
	f.reads["probe"] = true
	for _, era := range []string{"sessions", "modern"} {
		var session string
		if era == "sessions" {
			session = f.initialize("bot", "2025-11-25")
		}
		for i := range calls {
			var meta, version string
			if version = "2025-11-25"; session == "" {
				version, meta = modernVersion, modernMeta+","
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url, strings.NewReader(
				`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"probe","arguments":{},"_meta":{`+meta+`"progressToken":"mine"}}}`))
			if err != nil {
				t.Fatal(err)
			}
			for name, value := range map[string]string{"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Authorization": "Bearer bot",
				headerSession: session, headerVersion: version, "Mcp-Method": "tools/call", "Mcp-Name": "probe"} {
				req.Header.Set(name, value)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			var events []string
			for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
				for _, word := range []string{"first", "last", "over", "error"} {
					if strings.Contains(lines.Text(), word) {
						events = append(events, word)
						if word == "first" {
							heard <- struct{}{}
						}
					}
				}
			}
			resp.Body.Close()
			if got := strings.Join(events, " "); got != "first last over" {
				t.Fatalf("%s, call %d: %s", era, i, got)
			}
		}
	}
}

// What mcp-go keeps of a session is forgotten, and the session can be used on.
func TestIdleSessionsAreForgotten(t *testing.T) {
	f := newFront(t, func(f *front) { f.forgetAfter = time.Second })
	id := f.initialize("bot", "2025-06-18")
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(f.log.String(), "Sweeping") {
		if time.Now().After(deadline) {
			t.Fatal("nothing is forgotten")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if r := f.send("bot", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, headerSession, id); r.status != 200 {
		t.Errorf("%+v", r)
	}
}

// Many at once, at the edge of the rate: whoever is not served is told to wait, and
// nothing else happens to it.
func TestManyClients(t *testing.T) {
	f := newFront(t, func(f *front) { f.principals = newBuckets(200, 200) })
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			for range 20 {
				if r := f.call("bot", "list_namespaces", `{}`, ""); r.status != 200 && r.status != 429 {
					t.Errorf("%+v", r)
				}
			}
		})
	}
	all.Wait()
}

// One principal with as many requests open as it may have, in bodies that do not end
// or in calls that wait, is told to wait; others are served.
func TestPlaces(t *testing.T) {
	const most = 4
	began, finish := make(chan struct{}), make(chan struct{})
	f := newFront(t, func(f *front) {
		f.places.most = most
		f.executing = func(context.Context) {
			began <- struct{}{}
			<-finish
		}
	})
	var all sync.WaitGroup
	for range most / 2 {
		all.Go(func() {
			if r := f.call("bot", "list_namespaces", `{}`, ""); r.status != 200 {
				t.Errorf("%+v", r)
			}
		})
		<-began
	}
	var halves []net.Conn
	for range most / 2 {
		conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(f.url, "http://"), "/mcp"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer bot\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
		halves = append(halves, conn)
	}
	open := func() int {
		f.places.mu.Lock()
		defer f.places.mu.Unlock()
		return f.places.by["https://idp\nbot"]
	}
	for open() < most {
		time.Sleep(time.Millisecond)
	}
	const ping = `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	if r := f.send("bot", ping); r.status != http.StatusTooManyRequests || r.header.Get("Retry-After") != "1" {
		t.Errorf("one too many: %+v", r)
	}
	if r := f.do(http.MethodPost, f.url, "other", strings.Replace(ping, "ping", "initialize", 1)); r.status != 200 {
		t.Errorf("another: %+v", r)
	}
	if limited := f.store.of(audit.RateLimited); len(limited) != 1 || limited[0].Principal.Subject != "bot" {
		t.Errorf("on record: %+v", limited)
	}
	close(finish)
	for _, conn := range halves {
		conn.Close()
	}
	all.Wait()
	for open() > 0 {
		time.Sleep(time.Millisecond)
	}
	f.places.mu.Lock()
	defer f.places.mu.Unlock()
	if len(f.places.by) != 0 {
		t.Errorf("%v are left", f.places.by)
	}
}

// Nor can it fill the memory with bodies that do not end: of large ones it may have a
// few open.
func TestLargeBodies(t *testing.T) {
	f := newFront(t)
	f.large.most = 2
	for range 2 {
		conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(f.url, "http://"), "/mcp"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer bot\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"+strings.Repeat(" ", maxOther+1))
	}
	for open := 0; open < 2; {
		time.Sleep(time.Millisecond)
		f.large.mu.Lock()
		open = f.large.by["https://idp\nbot"]
		f.large.mu.Unlock()
	}
	large := `{"x":"` + strings.Repeat("x", maxOther) + `"}`
	if r := f.call("bot", "list_namespaces", large, ""); r.status != http.StatusTooManyRequests {
		t.Errorf("one too many: %+v", r)
	}
	if r := f.call("bot", "list_namespaces", `{}`, ""); r.status != 200 {
		t.Errorf("a small one: %+v", r)
	}
	for range 3 {
		if r := f.call("other", "list_namespaces", large, ""); r.status != 200 {
			t.Errorf("another's: %+v", r)
		}
	}
}
