package audit

import (
	"encoding/base64"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"countersign/audit/audittest"
)

// What stands around a secret stays.
func TestMaskTextKeepsTheRest(t *testing.T) {
	github := audittest.Planted()[0].Value
	for _, row := range []struct{ name, in, want string }{
		{"name and value", "password=hunter2", "password=***"},
		{"among others", "user=app password=hunter2 host=db", "user=app password=*** host=db"},
		{"quoted", `password = "hunter2 and more", next`, `password = "***", next`},
		{"in JSON", `{"password":"hunter2","user":"app"}`, `{"password":"***","user":"app"}`},
		{"in JSON in a string", `{"a":"{\"password\":\"hunter2\",\"user\":\"app\"}"}`, `{"a":"{\"password\":\"***\",\"user\":\"app\"}"}`},
		{"lines in JSON", `{"a":"x=1\npassword=hunter2\nuser=app"}`, `{"a":"x=1\npassword=***\nuser=app"}`},
		{"in YAML", "db:\n  password: hunter2\n  user: app", "db:\n  password: ***\n  user: app"},
		{"in YAML with a comment", "password: hunter2 # of the database", "password: *** # of the database"},
		{"a connection string", "Server=db;Password=p@ss(w0rd)!;Encrypt=true", "Server=db;Password=***;Encrypt=true"},
		{"a query", "GET /login?user=app&password=hunter2&next=/", "GET /login?user=app&password=***&next=/"},
		{"a flag", "run --password hunter2 --verbose", "run --password *** --verbose"},
		{"a flag without a value", "run --password --verbose", "run --password --verbose"},
		{"a URL", "postgres://app:hunter2@db:5432/shop", "postgres://app:***@db:5432/shop"},
		{"a URL, password with an at sign", "https://app:hunt@er2@db/", "https://app:***@db/"},
		{"a reference in a URL", "postgres://app:$(DB_PASSWORD)@db/shop", "postgres://app:$(DB_PASSWORD)@db/shop"},
		{"a header", "Authorization: Basic YXBwOmh1bnRlcjI=", "Authorization: Basic ***"},
		{"as Go prints headers", "map[Accept:[*/*] Authorization:[Bearer 0123456789abcdefXYZ]]", "map[Accept:[*/*] Authorization:[Bearer ***]]"},
		{"two of a kind", github + "," + github, "***,***"},
		{"JSON without spaces", `{"a":"` + github + `"}`, `{"a":"***"}`},
		{"a token before the next line", "got " + github + "\nstarting server", "got ***\nstarting server"},
		{"a token before a date", "got " + token + "\n2026-01-02T03:04:05Z INFO next", "got ***\n2026-01-02T03:04:05Z INFO next"},
		{"colour around it", "\x1b[32mpassword\x1b[0m=\x1b[31mhunter2\x1b[0m end", "\x1b[32mpassword\x1b[0m=\x1b[31m***\x1b[0m end"},
		{"base64 in words", "data " + base64.StdEncoding.EncodeToString([]byte("password=hunter2")) + " end", "data *** end"},
		{"nested base64", "data " + base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString([]byte("password=hunter2")))) + " end", "data *** end"},
		{"base64 without its beginning", base64.StdEncoding.EncodeToString([]byte("some words and then password=hunter2"))[3:], "***"},
		{"a digest of it", "password_hash=5f4dcc3b5aa765d61d8327deb882cf99", "password_hash=5f4dcc3b5aa765d61d8327deb882cf99"},
		{"lines of a key", "x:\n" + audittest.PEMBody() + "\nnext", "x:\n***\nnext"},
		{"a command behind it", "PGPASSWORD=hunter2&&wget x", "PGPASSWORD=***&&wget x"},
		{"a pipe behind it", "password=hunter2|sh", "password=***|sh"},
		{"a redirection behind it", "password=hunter2>x password=hunter2<x", "password=***>x password=***<x"},
		{"the output of a command behind it", "password=hunter2$(wget x) PASSWORD: hunter2`x`", "password=***$(wget x) PASSWORD: ***`x`"},
		{"the output of a command within quotes", `password="hunter2$(wget x)"`, `password="hunter2$(wget x)"`},
		{"the user of curl, of several flags", "curl -u app:hunter2 x; curl -u app:hunter3 y", "curl -u *** x; curl -u *** y"},
		{"two full lines of a key", "x\n" + audittest.PEMBody()[:129] + "\nnext", "x\n***\nnext"},
	} {
		if got := MaskText(row.in); got != row.want {
			t.Errorf("%s:\ngot  %q\nwant %q", row.name, got, row.want)
		}
	}
}

func FuzzMaskText(f *testing.F) {
	for _, secret := range audittest.Planted() {
		f.Add(secret.Text)
		f.Add("a " + secret.Text[:len(secret.Text)/2] + "\n" + secret.Text[len(secret.Text)/2:] + " b")
	}
	for _, text := range audittest.Lookalikes() {
		f.Add(text)
	}
	f.Add("password=\xff\xfe")
	f.Add("://a:b@c://d:e@password: x\u200by")
	f.Fuzz(func(t *testing.T, s string) {
		once := MaskText(s)
		if again := MaskText(once); again != once {
			t.Errorf("%q becomes %q, and that %q", s, once, again)
		}
		if utf8.ValidString(s) && !utf8.ValidString(once) {
			t.Errorf("%q becomes %q", s, once)
		}
		if more := strings.Count(once, Masked) - strings.Count(s, Masked); len(once) > len(s)+len(Masked)*max(more, 0) {
			t.Errorf("%q grows to %q", s, once)
		}
		// Without a letter or a digit there is no credential.
		if strings.Trim(s, " \n*=:./") == "" && once != s {
			t.Errorf("%q becomes %q", s, once)
		}
	})
}

// logText is n bytes of what controllers write, without secrets.
func logText(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "I0102 03:04:05.%06d       1 controller.go:%d] \"Reconciling\" key=\"shop/web-%x-x2x9q\" apiVersion=\"apps/v1\" kind=\"Deployment\" observedGeneration=%d\n", i, i%900, 1000003*i, i)
		fmt.Fprintf(&b, "2026-01-02T03:04:05.%06dZ INFO [http-nio-8080-exec-%d] org.springframework.security.web.FilterChainProxy: Securing GET /api/v1/orders/%d?page=2&size=20 took %dms\n", i, i%20, i*7919, i%300)
		fmt.Fprintf(&b, `{"level":"info","ts":"2026-01-02T03:04:05.%06dZ","logger":"auth","msg":"token review succeeded","user":"system:serviceaccount:shop:web","trace_id":"%032x","duration":"%dms"}`+"\n", i, i*104729, i%90)
	}
	return b.String()[:n]
}

// tableText is n bytes of a list of pods.
func tableText(n int) string {
	var b strings.Builder
	b.WriteString("NAMESPACE     NAME                        READY   STATUS    RESTARTS   AGE    IP             NODE\n")
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "shop          web-%08x5d-x%04x        1/1     Running   %d          %dd     10.244.%d.%d    ip-10-0-%d-34.ec2.internal\n", 7919*i, i, i%5, i%90, i%255, i%250, i%255)
	}
	return b.String()[:n]
}

func TestLargeText(t *testing.T) {
	secret := audittest.Planted()[0]
	const size = 1 << 20
	const hostile = size / 4 // texts made to be slow
	for name, text := range map[string]string{
		"log": logText(size), "table": tableText(size), "one line": strings.ReplaceAll(logText(size), "\n", " "),
		"base64": strings.Repeat("QUJD", size/4), "line breaks": strings.Repeat("\n", size), "letters": strings.Repeat("a", size),
		"names": strings.Repeat("key=token=", hostile/10), "beginnings of keys": strings.Repeat("-----BEGIN PRIVATE KEY-----", hostile/27), "tokens": strings.Repeat(secret.Text+"\n", hostile/len(secret.Text)),
		"words in base64": base64.StdEncoding.EncodeToString([]byte(logText(hostile))),
	} {
		start := time.Now()
		masked := MaskText(text + "\n" + secret.Text)
		took := time.Since(start)
		t.Logf("%s: %v", name, took)
		if strings.Contains(masked, secret.Value) {
			t.Errorf("%s: the secret at the end is left", name)
		}
		if took > 20*time.Second { // far more than it takes: machines differ, but not by what a square makes
			t.Errorf("%s took %v", name, took)
		}
	}
}

func benchmark(b *testing.B, text string) {
	if got := MaskText(text); got != text {
		b.Fatalf("it holds no secret, but: %s", got[:2000])
	}
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		MaskText(text)
	}
}

func BenchmarkMaskTextLog32KiB(b *testing.B)   { benchmark(b, logText(32<<10)) }
func BenchmarkMaskTextTable32KiB(b *testing.B) { benchmark(b, tableText(32<<10)) }
func BenchmarkMaskTextLog4MiB(b *testing.B)    { benchmark(b, logText(4<<20)) }
func BenchmarkMaskTextShort(b *testing.B)      { benchmark(b, "the deployment web has 3 replicas") }

func BenchmarkMaskDeployment20KiB(b *testing.B) {
	var containers []any
	for i := range 14 {
		env := []any{}
		for j := range 12 {
			env = append(env, map[string]any{"name": fmt.Sprintf("SETTING_%d", j), "value": fmt.Sprintf("http://service-%d.shop.svc:8080/api", j)})
		}
		containers = append(containers, map[string]any{"name": fmt.Sprintf("c%d", i), "image": "registry.example.com/shop/web:1.25.3", "env": env,
			"resources": map[string]any{"limits": map[string]any{"cpu": "500m", "memory": "256Mi"}}, "args": []any{"--listen=:8080", "--log-level=info"}})
	}
	object := map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "web", "labels": map[string]any{"app": "web"}},
		"spec": map[string]any{"template": map[string]any{"spec": map[string]any{"containers": containers}}}}
	b.ReportAllocs()
	for b.Loop() {
		Mask(object)
	}
}

// BenchmarkStart is what the first call pays, and how much memory stays if
// every rule was needed once.
func BenchmarkStart(b *testing.B) {
	var before, read, compiled runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	set := must(readRules(gitleaks))
	runtime.GC()
	runtime.ReadMemStats(&read)
	for _, rules := range set.rules {
		for _, r := range rules {
			if r.regex != nil {
				r.regex()
			}
			for _, a := range r.allow {
				if a.stop != nil {
					a.stop()
				}
				if a.regex != nil {
					a.regex()
				}
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&compiled)
	for b.Loop() {
		must(readRules(gitleaks))
	}
	b.ReportMetric(float64(read.HeapAlloc-before.HeapAlloc)/1024, "KiB-read")
	b.ReportMetric(float64(compiled.HeapAlloc-before.HeapAlloc)/1024, "KiB-compiled")
	runtime.KeepAlive(set)
}

// What strip passes by unseen would not have found either.
func TestHides(t *testing.T) {
	for r := range rune(0x110000) {
		for _, s := range []string{string(r), string(r) + "u001b[m", string(r) + "[m"} {
			if unseen(s, 0) > 0 && !hides[s[0]] {
				t.Errorf("%q is not hidden", s)
			}
		}
	}
}
