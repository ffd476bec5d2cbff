// Package audittest holds made-up credentials and texts that only look like
// some, for tests of what is masked. It holds no tests itself. The credentials
// are put together when asked for, so that no scanner finds one in the source;
// they are the same each time.
package audittest

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
)

// Secret is one made-up credential.
type Secret struct {
	// Kind says of what: "github-pat".
	Kind string
	// Value is what must not be seen.
	Value string
	// Text is how it stands somewhere: Value, with what says that it is one
	// around it where the value alone does not.
	Text string
}

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	digits = "0123456789"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	base62 = digits + upper + lower
	base36 = digits + lower
	hex16  = "0123456789abcdef"
)

type maker struct{ *rand.Rand }

func (m maker) of(alphabet string, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[m.IntN(len(alphabet))]
	}
	return string(b)
}

func (m maker) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.IntN(256))
	}
	return b
}

// phrase is a password of letters and digits that ends in both.
func (m maker) phrase(n int) string { return m.of(base62, n-3) + m.of(lower, 1) + m.of(digits, 2) }

// Planted returns credentials of more than forty kinds.
func Planted() []Secret {
	m := maker{rand.New(rand.NewPCG(1, 2))}
	var out []Secret
	bare := func(kind, value string) { out = append(out, Secret{kind, value, value}) }
	in := func(kind, format, value string) { out = append(out, Secret{kind, value, fmt.Sprintf(format, value)}) }
	for range 2 {
		bare("github-pat", "gh"+"p_"+m.of(base62, 36))
		bare("github-oauth", "gh"+"o_"+m.of(base62, 36))
		bare("github-app-token", "gh"+"s_"+m.of(base62, 36))
		bare("github-fine-grained-pat", "github"+"_pat_"+m.of(base62, 22)+"_"+m.of(base62, 59))
		bare("gitlab-pat", "gl"+"pat-"+m.of(base62, 20))
		bare("aws-access-key-id", "AK"+"IA"+m.of(upper+"234567", 16))
		in("aws-secret-access-key", "aws_secret_access_key = %s", m.of(base62+"+/", 38)+m.of(base62, 2))
		bare("slack-bot-token", "xo"+"xb-"+m.of(digits, 12)+"-"+m.of(digits, 12)+"-"+m.of(base62, 24))
		bare("slack-user-token", "xo"+"xp-"+m.of(digits, 12)+"-"+m.of(digits, 12)+"-"+m.of(digits, 12)+"-"+m.of(hex16, 32))
		bare("slack-webhook", "https://hooks."+"slack.com/services/T"+m.of(upper+digits, 8)+"/B"+m.of(upper+digits, 8)+"/"+m.of(base62, 24))
		bare("stripe", "sk"+"_live_"+m.of(base62, 24))
		bare("stripe-restricted", "rk"+"_live_"+m.of(base62, 24))
		bare("gcp-api-key", "AI"+"za"+m.of(base62, 35))
		bare("jwt", m.jwt())
		bare("npm", "npm"+"_"+m.of(base62, 36))
		bare("pypi", "pypi-"+"AgEIcHlwaS5vcmc"+m.of(base62, 70))
		bare("sendgrid", "SG"+"."+m.of(base62, 22)+"."+m.of(base62, 43))
		bare("openai", "sk"+"-"+m.of(base62, 20)+"T3Blbk"+"FJ"+m.of(base62, 20))
		bare("anthropic", "sk-"+"ant-api03-"+m.of(base62, 93)+"AA")
		bare("huggingface", "hf"+"_"+m.of(lower+upper, 34))
		bare("digitalocean", "dop"+"_v1_"+m.of(hex16, 64))
		bare("vault", "hv"+"s."+m.of(base62, 95))
		bare("databricks", "da"+"pi"+m.of(hex16, 32))
		bare("postman", "PM"+"AK-"+m.of(hex16, 24)+"-"+m.of(hex16, 34))
		bare("shopify", "shp"+"at_"+m.of(hex16, 32))
		bare("twilio", "S"+"K"+m.of(hex16, 32))
		bare("grafana", "gl"+"sa_"+m.of(base62, 32)+"_"+m.of(hex16, 8))
		bare("doppler", "dp"+".pt."+m.of(base62, 43))
		bare("age", "AGE-SECRET"+"-KEY-1"+m.of("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58))
		bare("linear", "lin"+"_api_"+m.of(base62, 40))
		bare("pulumi", "pu"+"l-"+m.of(hex16, 40))
		bare("terraform-cloud", m.of(base62, 14)+".atlas"+"v1."+m.of(base62, 64))
		bare("atlassian", "ATA"+"TT3"+m.of(base62, 186))
		bare("planetscale", "pscale"+"_tkn_"+m.of(base62, 43))
		bare("azure-client-secret", m.of(base62, 3)+"8"+"Q~"+m.of(base62, 34))
		bare("rubygems", "ruby"+"gems_"+m.of(hex16, 48))
		in("datadog", "DATADOG_API_KEY=%s", m.of(base36, 39)+"7")
		in("telegram", "telegram_bot_token: %s", m.of("123456789", 10)+":"+"A"+m.of(base62, 34))
		in("heroku", "heroku_api_key=%s", m.uuid())
		in("url-password", "postgres://app:%s@db.shop.svc:5432/shop?sslmode=require", m.phrase(14))
		in("url-password-without-user", "redis://:%s@cache:6379/0", m.phrase(12))
		in("password", "password=%s", m.phrase(9))
		in("password-property", "spring.datasource.password=%s", m.phrase(12))
		in("password-yaml", "dbPassword: %s", m.phrase(10))
		in("password-json", `{"user":"app","passwd":"%s"}`, m.phrase(11))
		in("client-secret", `client_secret="%s"`, m.phrase(24))
		in("api-key", "apiKey: %s", m.phrase(20))
		in("basic-auth-header", "Authorization: Basic %s", base64.StdEncoding.EncodeToString([]byte("app:"+m.phrase(12))))
		in("bearer-header", "authorization: Bearer %s", m.phrase(32))
		in("docker-auth", `{"auths":{"registry.example.com":{"auth":"%s"}}}`, base64.StdEncoding.EncodeToString([]byte("bot:"+m.phrase(16))))
		in("netrc", "machine git.example.com login bot password %s", m.phrase(15))
		in("sql-server", "Server=db;Database=shop;User Id=app;Password=%s;Encrypt=true", m.phrase(13))
		in("azure-storage", "AccountName=shop;AccountKey=%s;EndpointSuffix=core.windows.net", m.of(base62+"+/", 84)+m.of(base62, 2)+"==")
		in("flag", "join 10.0.0.1:6443 --token %s --v=2", m.of(base36, 5)+"7."+m.of(base36, 14)+"3d")
	}
	for _, kind := range []string{"RSA ", "", "EC ", "OPENSSH "} {
		body := m.pemBody(8)
		out = append(out, Secret{strings.ToLower(kind) + "private-key", body[64:129], "-----BEGIN " + kind + "PRIVATE" + " KEY-----\n" + body + "\n-----END " + kind + "PRIVATE" + " KEY-----"})
	}
	return out
}

// PEMBody returns lines as those of a PEM file, without its begin and end.
func PEMBody() string { return maker{rand.New(rand.NewPCG(3, 4))}.pemBody(6) }

func (m maker) pemBody(lines int) string {
	text := base64.StdEncoding.EncodeToString(m.bytes(48*lines + 20))
	var b strings.Builder
	for len(text) > 64 {
		b.WriteString(text[:64] + "\n")
		text = text[64:]
	}
	return b.String() + text
}

func (m maker) jwt() string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + encode([]byte(`{"sub":"system:serviceaccount:shop:bot","jti":"`+m.of(hex16, 12)+`"}`)) + "." + encode(m.bytes(64))
}

func (m maker) uuid() string {
	h := hex.EncodeToString(m.bytes(16))
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Lookalikes returns texts as clusters are full of, none of which holds a
// credential.
func Lookalikes() []string {
	m := maker{rand.New(rand.NewPCG(5, 6))}
	sha256 := m.of(hex16, 64)
	sha1 := m.of(hex16, 40)
	encode := base64.StdEncoding.EncodeToString
	return []string{
		m.uuid(),
		"uid: " + m.uuid(),
		"uid=" + m.uuid() + " resourceVersion=48213377",
		"sha256:" + sha256,
		sha256,
		"image: registry.example.com:5000/shop/web:1.25.3@sha256:" + sha256,
		"docker-pullable://nginx:1.25@sha256:" + sha256,
		"containerd://" + sha256,
		"commit " + sha1,
		"git-sha=" + sha1,
		"web-7c5ddbdf54-x2x9q",
		"shop/web-7c5ddbdf54-x2x9q",
		`"Reconciling" key="web-7c5ddbdf54-x2x9q" controller="replicaset"`,
		`"Syncing" key="kube-system/coredns-5d78c9869d-8zv4q"`,
		"pod-template-hash: 7c5ddbdf54",
		"pod-template-hash=7c5ddbdf54,app=web",
		"checksum/config: " + sha256,
		"checksum/secret: " + m.of(hex16, 64),
		"controller-revision-hash=web-6b8f9d7c4d",
		"10.244.3.17:8443",
		"fd00:10:244::1f3a",
		"2026-01-02T03:04:05.123456789Z",
		"Fri, 02 Jan 2026 03:04:05 GMT",
		"v1.29.3-gke.1282000",
		"1.2.3-rc.1+build.20260102",
		"W/\"" + m.of(hex16, 32) + "\"",
		"traceparent: 00-" + m.of(hex16, 32) + "-" + m.of(hex16, 16) + "-01",
		"trace_id=" + m.of(hex16, 32) + " span_id=" + m.of(hex16, 16),
		"secretName: web-tls-2024",
		"secret: db-credentials",
		"secretKeyRef: {name: db-credentials-v2, key: password}",
		"tokenName: bootstrap-token-abcdef",
		"serviceAccountName: token-reviewer-7f9c",
		"imagePullSecrets: [{name: registry-key-eu1}]",
		"key: node-role.kubernetes.io/control-plane",
		"key: topology.kubernetes.io/zone",
		"tls.key",
		"TOKEN_TTL=3600s",
		"tokenExpirationSeconds: 3607",
		"automountServiceAccountToken: false",
		"maxTokens: 4096",
		"PASSWORD_FILE=/run/secrets/db/password",
		"passwordFile: /etc/db/password",
		"password: $(DB_PASSWORD)",
		"password=${DB_PASSWORD}",
		"password: {{ .Values.db.password }}",
		"password: \"\"",
		"password=***",
		"Password: must be set",
		"invalid password for user app",
		"token is expired by 3h2m",
		"AUTH_URL=https://auth.example.com/oauth2/token",
		"https://user.example.com/login?next=/accounts",
		"https://10.96.0.1:443/api/v1/namespaces/shop/secrets/db-credentials",
		"/var/run/secrets/kubernetes.io/serviceaccount/token",
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(m.uuid(), "-", "_") + ".slice/cri-containerd-" + sha256 + ".scope",
		"feature-gates=ServiceAccountTokenJTI=true,SecretCaching=false",
		"ENABLE_TOKEN_AUTH=true",
		"org.springframework.security.authentication.UsernamePasswordAuthenticationToken",
		"password.encoder=org.springframework.security.crypto.bcrypt.BCryptPasswordEncoder",
		"clustersecretstores.external-secrets.io",
		"accesstokens.auth.example.com",
		"arn:aws:iam::123456789012:role/shop-web-20260102",
		"arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-AbCdEf",
		"123456789012",
		"bot@example.com",
		"projects/shop-prod/zones/europe-west1-b/disks/pvc-" + m.uuid(),
		"vol-0" + m.of(hex16, 16),
		"volumeHandle: pd.csi.storage.gke.io^" + m.uuid(),
		"ip-10-0-12-34.eu-west-1.compute.internal",
		"authorization-mode=Node,RBAC",
		"WWW-Authenticate: Basic realm=\"registry\"",
		"basic authentication failed",
		"Bearer authentication required",
		"apiVersion: external-secrets.io/v1beta1",
		"api-server: kube-apiserver-ip-10-0-12-34.ec2.internal",
		"accessModes: [ReadWriteOnce]",
		"keyspace: shop_orders_2026",
		"partition_key=customer_2026_eu",
		"sort.key=created_at",
		"public_key=" + m.of(base62, 43),
		"ssh-ed25519 fingerprint SHA256:" + m.of(base62, 43),
		encode([]byte("log.level=debug\nlisten=0.0.0.0:8080\n")),
		encode([]byte(`{"replicas":3,"image":"nginx:1.25"}`)),
		encode(m.bytes(60)),
		"-----BEGIN CERTIFICATE-----\n" + m.pemBody(5) + "\n-----END CERTIFICATE-----",
		"-----BEGIN PUBLIC KEY-----\n" + m.pemBody(3) + "\n-----END PUBLIC KEY-----",
		m.of(hex16, 64) + "\n" + m.of(hex16, 64) + "\n" + m.of(hex16, 64),
		"I0102 03:04:05.123456       1 token_cleaner.go:112] \"Caches are synced\" controller=\"token-cleaner\"",
		"E0102 03:04:05.123456       1 authentication.go:73] \"Unable to authenticate the request\" err=\"[invalid bearer token, service account token has expired]\"",
		"system:serviceaccount:kube-system:token-cleaner",
		"Successfully assigned shop/web-7c5ddbdf54-x2x9q to gke-prod-pool-1-3f2a9c1d-b7xq",
		"grüße über ümläute — “quoted” 日本語",
	}
}
