// What an application with the TypeScript SDK does at its first start: it is refused,
// finds out from the refusal where to log in, registers, sends the user's browser
// there, takes the code that comes back, and calls a tool. Prints what it was told.
//
// node login.mjs PACKAGE URL TOOL ARGUMENTS [OPTIONS]
const [name, url, tool, args, options] = process.argv.slice(2);
const v1 = name === '@modelcontextprotocol/sdk';
const { Client, StreamableHTTPClientTransport, UnauthorizedError } = v1
  ? { ...await import(`${name}/client/index.js`), ...await import(`${name}/client/streamableHttp.js`), ...await import(`${name}/client/auth.js`) }
  : await import(name);

const kept = {};
let callback;
const authProvider = {
  redirectUrl: 'http://127.0.0.1:1/callback', // nothing listens there: the "browser" stops before
  clientMetadata: { client_name: name, redirect_uris: ['http://127.0.0.1:1/callback'], grant_types: ['authorization_code'], response_types: ['code'], token_endpoint_auth_method: 'none' },
  state: () => 'a state',
  clientInformation: () => kept.client, saveClientInformation: (client) => { kept.client = client; },
  tokens: () => kept.tokens, saveTokens: (tokens) => { kept.tokens = tokens; },
  codeVerifier: () => kept.verifier, saveCodeVerifier: (verifier) => { kept.verifier = verifier; },
  redirectToAuthorization: async (address) => {
    const answer = await fetch(address, { redirect: 'manual' });
    if (answer.status !== 302) throw new Error(`the browser shows ${answer.status} ${await answer.text()}`);
    callback = new URL(answer.headers.get('location')).searchParams;
    if (callback.get('state') !== 'a state') throw new Error('another state came back');
  },
};

const connect = async () => {
  const client = new Client({ name: 'clients-test', version: '1' }, options ? JSON.parse(options) : {});
  const transport = new StreamableHTTPClientTransport(new URL(url), { authProvider });
  try {
    await client.connect(transport);
    return { client, revision: transport.protocolVersion };
  } catch (err) {
    if (kept.tokens || !callback || !(err instanceof UnauthorizedError)) throw err;
    await transport.finishAuth(v1 ? callback.get('code') : callback);
    return connect();
  }
};
const { client, revision } = await connect();
const answer = await client.callTool({ name: tool, arguments: JSON.parse(args) });
console.log(JSON.stringify({ revision, tools: (await client.listTools()).tools.length, answer }));
await client.close();
