package slacktest

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Call is one call of the Web API that arrived with a right token.
type Call struct {
	Method string            `json:"method"`
	Args   map[string]string `json:"args"` // without the token; what is not a string is JSON
	Error  string            `json:"error"`
	At     time.Time         `json:"at"`
}

// Calls returns the calls of method, or all with "*", oldest first. Those that
// met trouble are among them, with the error "trouble" unless they took effect.
func (s *Server) Calls(method string) []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []Call
	for _, c := range s.calls {
		if method == "*" || c.Method == method {
			found = append(found, c)
		}
	}
	return found
}

type answer map[string]any

func failed(name string) answer { return answer{"ok": false, "error": name} }

// rejected is an answer that says, as Slack does, which parts are wrong.
func rejected(name string, why []string) answer {
	messages := make([]string, len(why))
	for i, w := range why {
		messages[i] = "[ERROR] " + w
	}
	return answer{"ok": false, "error": name, "errors": why, "response_metadata": answer{"messages": messages}}
}

func reply(w http.ResponseWriter, a any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(a)
}

// method is one method of the Web API: the scope it needs, and its effect, which
// is called with the lock held.
type method struct {
	scope string
	do    func(*Server, args) answer
}

var methods = map[string]method{
	"auth.test":             {"", (*Server).authTest},
	"apps.connections.open": {"", (*Server).connectionsOpen},
	"bots.info":             {"users:read", (*Server).botsInfo},
	"chat.postEphemeral":    {"chat:write", (*Server).postEphemeral},
	"chat.postMessage":      {"chat:write", (*Server).postMessage},
	"chat.update":           {"chat:write", (*Server).update},
	"conversations.history": {"channels:history", (*Server).history},
	"conversations.info":    {"channels:read", (*Server).conversationsInfo},
	"conversations.open":    {"im:write", (*Server).conversationsOpen},
	"conversations.replies": {"channels:history", (*Server).replies},
	"usergroups.users.list": {"usergroups:read", (*Server).groupMembers},
	"users.info":            {"users:read", (*Server).usersInfo},
	"users.lookupByEmail":   {"users:read.email", (*Server).lookupByEmail},
	"views.open":            {"", (*Server).viewsOpen},
	"views.push":            {"", (*Server).viewsPush},
	"views.update":          {"", (*Server).viewsUpdate},
}

func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		cut(w)
		return
	}
	a, err := readArgs(w, r)
	if err != nil {
		reply(w, failed("invalid_form_data"))
		return
	}
	name := r.PathValue("method")
	want := s.BotToken
	if name == "apps.connections.open" {
		want = s.AppToken
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if token == "" {
		token = a["token"]
	}
	delete(a, "token")
	switch token {
	case want:
	case "":
		reply(w, failed("not_authed"))
		return
	default:
		reply(w, failed("invalid_auth"))
		return
	}

	s.mu.Lock()
	t := s.meets(name)
	result := failed("trouble")
	if t == (Trouble{}) || t.Done {
		result = s.call(name, a)
	}
	said, _ := result["error"].(string)
	if len(s.calls) == maxCalls {
		s.calls = slices.Delete(s.calls, 0, 1)
	}
	s.calls = append(s.calls, Call{Method: name, Args: a, Error: said, At: time.Now()})
	s.wake()
	s.mu.Unlock()
	if !t.answer(s, w, r) {
		reply(w, result)
	}
}

func (s *Server) call(name string, a args) answer {
	m, ok := methods[name]
	if !ok {
		return failed("unknown_method")
	}
	if m.scope != "" && slices.Contains(s.lacking, m.scope) {
		refused := failed("missing_scope")
		refused["needed"], refused["provided"] = m.scope, "connections:write"
		return refused
	}
	return m.do(s, a)
}

// args are a call's arguments, whether they came as a form or as JSON.
type args map[string]string

func (a args) is(name string) bool { return a[name] == "true" || a[name] == "1" }

func readArgs(w http.ResponseWriter, r *http.Request) (args, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, err
	}
	a := args{}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind == "application/json" {
		if len(body) == 0 {
			return a, nil
		}
		var values map[string]json.RawMessage
		if err := json.Unmarshal(body, &values); err != nil {
			return nil, err
		}
		for k, v := range values {
			var text string
			if json.Unmarshal(v, &text) != nil {
				text = string(v)
			}
			a[k] = text
		}
		return a, nil
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	for _, from := range []url.Values{r.URL.Query(), form} {
		for k, v := range from {
			a[k] = v[0]
		}
	}
	return a, nil
}

func (s *Server) authTest(args) answer {
	return answer{"ok": true, "url": s.base + "/", "team": teamDomain, "user": botName, "team_id": s.TeamID,
		"user_id": s.BotUserID, "bot_id": s.BotID, "is_enterprise_install": false}
}

func (s *Server) botsInfo(a args) answer {
	if a["bot"] != "" && a["bot"] != s.BotID {
		return failed("bot_not_found")
	}
	return answer{"ok": true, "bot": answer{"id": s.BotID, "deleted": false, "name": botName, "updated": 1,
		"app_id": s.AppID, "user_id": s.BotUserID, "icons": answer{}}}
}

func (s *Server) connectionsOpen(args) answer {
	ticket := randomHex(12)
	if len(s.tickets) > 100 { // asked for and never used
		clear(s.tickets)
	}
	s.tickets[ticket] = true
	return answer{"ok": true, "url": "ws" + strings.TrimPrefix(s.base, "http") + "/ws?ticket=" + ticket + "&app_id=" + s.AppID}
}

func (s *Server) usersInfo(a args) answer {
	u, ok := s.users[a["user"]]
	if !ok {
		return failed("user_not_found")
	}
	return answer{"ok": true, "user": s.userJSON(u)}
}

func (s *Server) lookupByEmail(a args) answer {
	for _, u := range s.users {
		if u.Email != "" && strings.EqualFold(u.Email, a["email"]) && !u.Deleted {
			return answer{"ok": true, "user": s.userJSON(u)}
		}
	}
	return failed("users_not_found")
}

func (s *Server) userJSON(u User) answer {
	profile := answer{"real_name": u.RealName, "real_name_normalized": u.RealName, "display_name": u.DisplayName,
		"display_name_normalized": u.DisplayName, "team": u.TeamID, "avatar_hash": "", "status_text": "", "fields": []any{}}
	if u.Email != "" && !slices.Contains(s.lacking, "users:read.email") {
		profile["email"] = u.Email
	}
	user := answer{"id": u.ID, "team_id": u.TeamID, "name": u.Name, "deleted": u.Deleted, "profile": profile,
		"is_bot": u.IsBot, "is_app_user": false, "updated": 1}
	// Of somebody who is gone Slack tells hardly more than the name.
	if !u.Deleted {
		user["real_name"] = u.RealName
		user["is_admin"], user["is_owner"], user["is_primary_owner"] = false, false, false
		user["is_restricted"], user["is_ultra_restricted"] = u.IsRestricted, u.IsUltraRestricted
		user["is_email_confirmed"] = !u.EmailUnconfirmed
		user["tz"], user["tz_label"], user["tz_offset"] = "Etc/UTC", "UTC", 0
	}
	if u.IsStranger || u.TeamID != s.TeamID {
		user["is_stranger"] = u.IsStranger
	}
	if u.EnterpriseID != "" {
		user["enterprise_user"] = answer{"id": "W" + strings.TrimPrefix(u.ID, "U"), "enterprise_id": u.EnterpriseID,
			"enterprise_name": u.EnterpriseID, "is_admin": false, "is_owner": false, "teams": []string{u.TeamID}}
	}
	return user
}

func (s *Server) groupMembers(a args) answer {
	members, ok := s.groups[a["usergroup"]]
	if !ok {
		return failed("no_such_subteam")
	}
	return answer{"ok": true, "users": members}
}

// im returns the direct message channel of a person, made if need be. The lock is held.
func (s *Server) im(user string) *channel {
	id := "D" + strings.TrimLeft(user, "UW")
	if s.channels[id] == nil {
		s.channels[id] = &channel{Channel: Channel{ID: id, Name: "directmessage", Private: true, Members: []string{user}}, im: user}
	}
	return s.channels[id]
}

func (s *Server) conversationsOpen(a args) answer {
	if id := a["channel"]; id != "" {
		c := s.channels[id]
		if c == nil || c.im == "" {
			return failed("channel_not_found")
		}
		return answer{"ok": true, "no_op": true, "already_open": true, "channel": c.json(a.is("return_im"))}
	}
	users := strings.Split(a["users"], ",")
	u, ok := s.users[users[0]]
	switch {
	case a["users"] == "":
		return failed("users_list_not_supplied")
	case len(users) > 1:
		return failed("too_many_users") // no group direct messages here
	case !ok:
		return failed("user_not_found")
	case u.Deleted:
		return failed("user_disabled")
	case u.IsBot:
		return failed("cannot_dm_bot")
	}
	return answer{"ok": true, "channel": s.im(u.ID).json(a.is("return_im"))}
}

func (s *Server) conversationsInfo(a args) answer {
	c := s.channels[a["channel"]]
	if c == nil || c.Private && c.Without {
		return failed("channel_not_found")
	}
	return answer{"ok": true, "channel": c.json(true)}
}

func (c *channel) json(whole bool) answer {
	if !whole {
		return answer{"id": c.ID}
	}
	out := answer{"id": c.ID, "created": 1, "is_archived": c.Archived, "is_private": c.Private, "is_im": c.im != "",
		"is_mpim": false, "is_shared": false, "is_ext_shared": false, "is_org_shared": false}
	if c.im != "" {
		out["user"], out["is_open"] = c.im, true
		return out
	}
	out["name"], out["name_normalized"] = c.Name, c.Name
	out["is_channel"], out["is_group"], out["is_member"] = !c.Private, c.Private, !c.Without
	return out
}

// writable finds the channel that a message goes to: by id, or when posting by
// name or by the id of a person too.
func (s *Server) writable(name string, posting bool) (*channel, string) {
	c := s.channels[name]
	if posting && c == nil {
		if u, ok := s.users[name]; ok && !u.IsBot {
			c = s.im(u.ID)
		}
		for _, other := range s.channels {
			if other.im == "" && other.Name != "" && other.Name == strings.TrimPrefix(name, "#") {
				c = other
			}
		}
	}
	switch {
	case c == nil || c.Private && c.Without:
		return nil, "channel_not_found"
	case c.Without:
		return nil, "not_in_channel"
	case c.Archived:
		return nil, "is_archived"
	}
	return c, ""
}

// content reads what a message says. Absent parts are nil.
func content(a args, longest int) (text *string, blocks []Block, metadata json.RawMessage, bad answer) {
	if t, ok := a["text"]; ok {
		text = &t
		if length(t) > longest {
			return nil, nil, nil, failed("msg_too_long")
		}
	}
	if raw, ok := a["blocks"]; ok {
		if json.Unmarshal([]byte(raw), &blocks) != nil || blocks == nil {
			return nil, nil, nil, failed("invalid_blocks_format")
		}
		if why := checkBlocks("/blocks", blocks, surfaceMessage); len(why) > 0 {
			return nil, nil, nil, rejected("invalid_blocks", why)
		}
		if textLength(blocks) > maxMessageText {
			return nil, nil, nil, failed("msg_blocks_too_long")
		}
	}
	if raw, ok := a["metadata"]; ok {
		var m struct {
			Type    string         `json:"event_type"`
			Payload map[string]any `json:"event_payload"`
		}
		empty := strings.TrimSpace(raw) == "{}"
		if json.Unmarshal([]byte(raw), &m) != nil || !empty && (m.Type == "" || m.Payload == nil) {
			return nil, nil, nil, failed("invalid_metadata_format")
		}
		metadata = json.RawMessage(raw)
	}
	return text, blocks, metadata, nil
}

func (s *Server) postMessage(a args) answer {
	c, bad := s.writable(a["channel"], true)
	if bad != "" {
		return failed(bad)
	}
	text, blocks, metadata, wrong := content(a, 40000)
	if wrong != nil {
		return wrong
	}
	if (text == nil || *text == "") && len(blocks) == 0 {
		return failed("no_text")
	}
	m := &Message{Channel: c.ID, TS: s.ts(), User: s.BotUserID}
	m.set(s, text, blocks, metadata)
	// A reply to what is not there stands by itself: so does Slack when the
	// first message of a thread has been deleted.
	if parent := c.find(a["thread_ts"]); parent != nil {
		m.ThreadTS = parent.TS
		if parent.ThreadTS != "" {
			m.ThreadTS = parent.ThreadTS
		}
		m.Broadcast = a.is("reply_broadcast")
	}
	s.put(c, m)
	return answer{"ok": true, "channel": c.ID, "ts": m.TS, "message": s.messageJSON(c, m, true)}
}

// put stores a message. The lock is held.
func (s *Server) put(c *channel, m *Message) {
	if len(c.messages) == maxMessages {
		c.messages = slices.Delete(c.messages, 0, 1)
	}
	c.messages = append(c.messages, m)
	s.wake()
}

func (s *Server) update(a args) answer {
	c, bad := s.writable(a["channel"], false)
	if bad != "" {
		return failed(bad)
	}
	m := c.find(a["ts"])
	switch {
	case m == nil:
		return failed("message_not_found")
	case m.User != s.BotUserID:
		return failed("cant_update_message")
	}
	text, blocks, metadata, wrong := content(a, 4000)
	if wrong != nil {
		return wrong
	}
	if text == nil && blocks == nil && metadata == nil {
		return failed("no_text")
	}
	m.keep()
	m.set(s, text, blocks, metadata)
	m.Edits++
	m.edited = s.ts()
	return answer{"ok": true, "channel": c.ID, "ts": m.TS, "text": m.Text, "message": s.messageJSON(c, m, true)}
}

func (s *Server) postEphemeral(a args) answer {
	c, bad := s.writable(a["channel"], true)
	if bad != "" {
		return failed(bad)
	}
	if !s.member(c, a["user"]) {
		return failed("user_not_in_channel")
	}
	text, blocks, _, wrong := content(a, 40000)
	if wrong != nil {
		return wrong
	}
	if (text == nil || *text == "") && len(blocks) == 0 {
		return failed("no_text")
	}
	e := Ephemeral{User: a["user"], TS: s.ts(), ThreadTS: a["thread_ts"], Blocks: s.rendered(blocks)}
	if text != nil {
		e.Text = *text
	}
	if len(c.ephemerals) == maxMessages {
		c.ephemerals = slices.Delete(c.ephemerals, 0, 1)
	}
	c.ephemerals = append(c.ephemerals, e)
	return answer{"ok": true, "message_ts": e.TS}
}

func (s *Server) member(c *channel, user string) bool {
	u, ok := s.users[user]
	return ok && !u.Deleted && (c.Members == nil || slices.Contains(c.Members, user))
}

func (s *Server) readable(id string) (*channel, string) {
	c := s.channels[id]
	switch {
	case c == nil || c.Private && c.Without:
		return nil, "channel_not_found"
	case c.Without:
		return nil, "not_in_channel"
	}
	return c, ""
}

func (s *Server) history(a args) answer {
	c, bad := s.readable(a["channel"])
	if bad != "" {
		return failed(bad)
	}
	var found []*Message
	for _, m := range slices.Backward(c.messages) {
		if m.ThreadTS == "" || m.Broadcast {
			found = append(found, m)
		}
	}
	return s.page(c, found, a)
}

func (s *Server) replies(a args) answer {
	c, bad := s.readable(a["channel"])
	if bad != "" {
		return failed(bad)
	}
	first := c.find(a["ts"])
	if first == nil {
		return failed("thread_not_found")
	}
	found := []*Message{first}
	for _, m := range c.messages {
		if m.ThreadTS == first.TS {
			found = append(found, m)
		}
	}
	return s.page(c, found, a)
}

// page answers with the part of the found messages that the arguments ask for.
func (s *Server) page(c *channel, found []*Message, a args) answer {
	// Timestamps have one length, so they compare as text.
	within := func(ts string) bool {
		if oldest := a["oldest"]; oldest != "" && oldest != "0" && (ts < oldest || ts == oldest && !a.is("inclusive")) {
			return false
		}
		latest := a["latest"]
		return latest == "" || ts < latest || ts == latest && a.is("inclusive")
	}
	found = slices.DeleteFunc(found, func(m *Message) bool { return !within(m.TS) })
	limit := 100
	if n, err := strconv.Atoi(a["limit"]); err == nil && n != 0 {
		if n < 1 || n > 999 {
			return failed("invalid_limit")
		}
		limit = n
	}
	if a["cursor"] != "" {
		next, err := base64.StdEncoding.DecodeString(a["cursor"])
		ts, ok := strings.CutPrefix(string(next), "next_ts:")
		at := slices.IndexFunc(found, func(m *Message) bool { return m.TS == ts })
		if err != nil || !ok || at < 0 {
			return failed("invalid_cursor")
		}
		found = found[at:]
	}
	cursor := ""
	if len(found) > limit {
		cursor = base64.StdEncoding.EncodeToString([]byte("next_ts:" + found[limit].TS))
		found = found[:limit]
	}
	messages := []answer{}
	for _, m := range found {
		messages = append(messages, s.messageJSON(c, m, a.is("include_all_metadata")))
	}
	return answer{"ok": true, "messages": messages, "has_more": cursor != "", "pin_count": 0,
		"response_metadata": answer{"next_cursor": cursor}}
}

// messageJSON is a message as Slack shows it to the app. The lock is held.
func (s *Server) messageJSON(c *channel, m *Message, metadata bool) answer {
	out := answer{"type": "message", "user": m.User, "ts": m.TS, "text": m.Text, "team": s.TeamID}
	if m.User == s.BotUserID {
		out["bot_id"], out["app_id"] = s.BotID, s.AppID
		out["bot_profile"] = answer{"id": s.BotID, "app_id": s.AppID, "name": botName, "deleted": false, "updated": 1,
			"team_id": s.TeamID, "icons": answer{}}
	}
	if m.Blocks != nil {
		out["blocks"] = m.Blocks
	}
	if m.edited != "" {
		out["edited"] = answer{"user": m.User, "ts": m.edited}
	}
	if metadata && m.Metadata != nil {
		out["metadata"] = m.Metadata
	}
	if m.ThreadTS != "" {
		out["thread_ts"] = m.ThreadTS
		if first := c.find(m.ThreadTS); first != nil {
			out["parent_user_id"] = first.User
		}
		if m.Broadcast {
			out["subtype"] = "thread_broadcast"
		}
		return out
	}
	var users []string
	for _, r := range c.messages {
		if r.ThreadTS == m.TS {
			out["latest_reply"] = r.TS
			n, _ := out["reply_count"].(int)
			out["reply_count"] = n + 1
			if !slices.Contains(users, r.User) {
				users = append(users, r.User)
			}
		}
	}
	if users != nil {
		out["thread_ts"], out["reply_users"], out["reply_users_count"] = m.TS, users, len(users)
	}
	return out
}

func (c *channel) find(ts string) *Message {
	for _, m := range c.messages {
		if m.TS == ts {
			return m
		}
	}
	return nil
}
