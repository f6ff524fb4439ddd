// A module of the language, with what only those have: an anonymous default export, `await` at the top, a URL for a name.
import spot from './spot.js';

const { stop } = spot;

export default () => stop('default export');
export const scenarios = {
  imported() { return stop('imported'); },
  async dynamic() { return (await import('./module.mjs')).default(); },
};

await null;
stop('top-level await');
